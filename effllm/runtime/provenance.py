"""How an artifact came to be: code, packages, machine, job and time. Recorded, never compared."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from effllm.results.provenance import GitState, Host, Provenance

PACKAGES = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "diffusers",
    "gptqmodel",
    "lm-eval",
    "numpy",
    "optimum",
    "polars",
    "safetensors",
    "tokenizers",
    "torch",
    "torchao",
    "transformers",
)
_ROOT = Path(__file__).resolve().parents[1]


def collect(module: str, started: float) -> Provenance:
    """Provenance of the running process.

    `started` is a UNIX time in seconds; `module` names the stage's program, whose package is fingerprinted.
    """
    return Provenance(
        argv=[Path(sys.argv[0]).name, *sys.argv[1:]],
        code_fingerprint=code_fingerprint(module),
        git=git_state(),
        host=Host(
            cpu=_cpu_model(),
            cpus_usable=len(os.sched_getaffinity(0)),
            name=platform.node(),
            platform=platform.platform(),
        ),
        packages={name: _version(name) for name in PACKAGES},
        python=platform.python_version(),
        slurm_job_id=os.environ.get("SLURM_JOB_ID"),
        start=_utc(started),
        end=_utc(time.time()),
        wall_s=round(time.time() - started, 3),
    )


def code_fingerprint(module: str) -> str:
    """sha256 over the source of the sub-package that holds `module`; says "built by older code", triggers nothing."""
    package = _ROOT / module.split(".")[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(_ROOT).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def git_state() -> GitState:
    """Commit and dirty flag of the checkout that holds the package; None each where it is no checkout."""
    try:
        commit = subprocess.run(
            ["git", "-C", str(_ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "-C", str(_ROOT), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return GitState(commit=None, dirty=None)
    return GitState(commit=commit, dirty=bool(changes.strip()))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as stream:
            names = [line.partition(":")[2].strip() for line in stream if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
