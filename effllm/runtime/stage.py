"""The command line and the life cycle that every stage shares.

    python -m effllm.<package>.<stage> --spec spec.json [--input NAME=PATH ...] --output results/<stage>/<id>

`--files` takes more paths than a command line holds, as JSON: lists by name.

A program defines `build(job)` and hands it to `main` with its stage's declaration. `main` takes the lease on the
artifact, verifies the inputs, gives `build` a staging directory, and publishes what it leaves there.
"""

import argparse
import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from effllm.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, CellFailure, Interrupted, UserError
from effllm.results.base import ResultFile
from effllm.runtime import artifact, provenance
from effllm.runtime.artifact import MANIFEST, Artifact, Parent
from effllm.runtime.faults import fault_of_machine
from effllm.runtime.lease import lease
from effllm.runtime.local_files import read_sha256
from effllm.runtime.publishing import publish, restore
from effllm.runtime.start import libraries_imported

if TYPE_CHECKING:
    from effllm.stages.stage import Stage

log = logging.getLogger(__name__)
_Config = TypeVar("_Config", bound=BaseModel)
SCRATCH = ".scratch"
KEY = "key"
BEGUN = "begun.json"
CHECKPOINT_MARKER = "complete"
"""The file that is written last into a checkpoint, `work/checkpoint-<step>`."""
LEASE = "lease"


@dataclass(frozen=True)
class Job:
    """What `build` gets.

    `stage` is the stage's name, `module` its program.
    `inputs` are verified artifacts by name; `files` are plain input files by name; `output` is an empty directory
    for the payload; `records` is a directory inside it for observations that are not part of the artifact's
    identity; `scratch` survives a killed run of the same spec on the same inputs, and holds checkpoints.
    """

    stage: str
    module: str
    id: str
    spec: dict[str, Any]
    inputs: dict[str, Artifact]
    files: dict[str, Path]
    output: Path
    records: Path
    scratch: Path

    def config(self, model: type[_Config]) -> _Config:
        """This job's slice of the study, typed; `UserError` if the spec does not hold one."""
        try:
            return model.model_validate(self.spec["config"])
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in ("config", *first["loc"]))
            raise UserError(
                f"--spec: {where}: {first['msg']} (got {first['input']!r}); take it from the study."
            ) from None

    def write(self, result: ResultFile) -> None:
        """Write a file of the payload, or a record."""
        path = self.output / result.FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        artifact.write_text(path, result.to_json())


def main(stage: "Stage", build: Callable[[Job], None], argv: list[str] | None = None) -> None:
    """Run one stage as a program and exit: 0 published, 2 the user's error, 75 interrupted, else a defect."""
    libraries_imported()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    arguments = _parse(stage.module, argv)
    try:
        run(stage, build, **arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except Interrupted as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    # Panics of libraries in Rust are no Exception.
    except BaseException as error:
        sentence = fault_of_machine(error, arguments["output"])
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


def run(
    stage: "Stage", build: Callable[[Job], None], *, spec: dict[str, Any], inputs: dict[str, list[Path]], output: Path
) -> Artifact:
    """Build and publish the artifact at `output`, or return it if it is already there, whole, of the same inputs."""
    started = time.time()
    if spec.get("version") != stage.version:
        raise UserError(
            f"the spec says version {spec.get('version')} of stage {stage.name}, this package builds {stage.version}: "
            "take the spec from the workflow, or set its version."
        )
    artifacts, files, parents = _open_inputs(inputs, output.parent.parent / SCRATCH)
    key = scratch_key(spec, parents)
    scratch = output.parent.parent / SCRATCH / stage.name / output.name
    with lease(scratch / LEASE, output.name) as held:
        finished = restore(output, spec, parents)
        if finished:
            log.info("%s is up to date: same spec, same inputs, payload intact; delete it to build it again", output)
            return finished
        _reset_unless(scratch, key, stage, spec, parents)
        staging = scratch / "staging"
        if staging.exists():
            shutil.rmtree(staging)
        records = staging / artifact.RECORDS
        records.mkdir(parents=True)
        job = Job(stage.name, stage.module, output.name, spec, artifacts, files, staging, records, scratch / "work")
        job.scratch.mkdir(exist_ok=True)
        failure = _build(build, job)
        held.require_held()
        published = publish(
            staging,
            output,
            stage=stage.name,
            id=output.name,
            spec=spec,
            parents=parents,
            provenance=provenance.collect(stage.module, started),
            failure=failure,
        )
        shutil.rmtree(job.scratch)
        log.info("published %s (%s)", output, published.manifest.status)
        return published


def _build(build: Callable[[Job], None], job: Job) -> CellFailure | None:
    try:
        for parent in job.inputs.values():
            parent.require_ok()
        build(job)
    except CellFailure as failure:
        log.warning("%s: %s", failure.status, failure.reason)
        return failure
    return None


def _parse(module: str, argv: list[str] | None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("--spec", type=Path, required=True, help="JSON: stage, version, config")
    parser.add_argument("--input", action="append", default=[], metavar="NAME=PATH", help="manifest.json or file")
    parser.add_argument("--files", type=Path, metavar="JSON", help="lists of paths by name, as of many files")
    parser.add_argument("--output", type=Path, required=True, help="directory results/<stage>/<id>")
    arguments = parser.parse_args(argv)
    inputs: dict[str, list[Path]] = {}
    for text in arguments.input:
        name, separator, path = text.partition("=")
        if not separator:
            parser.error(f"--input {text}: write NAME=PATH")
        inputs.setdefault(name, []).append(Path(path))
    spec, lists = (_json(parser, option, getattr(arguments, option)) for option in ("spec", "files"))
    for name, paths in lists.items():
        inputs.setdefault(name, []).extend(map(Path, paths))
    return {"spec": spec, "inputs": inputs, "output": arguments.output}


def _json(parser: argparse.ArgumentParser, option: str, path: Path | None) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text()) if path else {}
        return content
    except (OSError, ValueError) as error:
        parser.error(f"--{option} {path}: {error}")


def _open_inputs(
    inputs: dict[str, list[Path]], scratch: Path
) -> tuple[dict[str, Artifact], dict[str, Path], dict[str, Parent]]:
    artifacts, files, parents = {}, {}, {}
    for name, paths in inputs.items():
        for index, path in enumerate(paths):
            if path.name == MANIFEST:
                opened = Artifact.open(path)
                opened.require_own_manifest()
                opened.verify()
                artifacts[name] = opened
                parents[name] = opened.as_parent()
            elif not path.is_file():
                raise UserError(f"input {name}: {path} does not exist; restore it or change the study.")
            else:
                key = f"{name}[{index}]"
                files[key] = path
                parents[key] = Parent("file", path.name, read_sha256(path, scratch))
    return artifacts, files, parents


def scratch_key(spec: dict[str, Any], parents: Mapping[str, Parent]) -> str:
    """What a scratch belongs to: a checkpoint counts only for the spec and the inputs that it was written for."""
    text = json.dumps([spec, {name: parent.sha256 for name, parent in parents.items()}], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _reset_unless(scratch: Path, key: str, stage: "Stage", spec: dict[str, Any], parents: Mapping[str, Parent]) -> None:
    """Empty the scratch unless it is of this key.

    Raises `UserError` where it holds a checkpoint of the same run that kept to other settings of `stage.kept_to`: hours
    of work, which a change of the number of ranks is not meant to delete.
    """
    marker = scratch / KEY
    if marker.exists() and marker.read_bytes() == key.encode():
        return
    config = dict(spec["config"])
    kept = {name: config.pop(name) for name in stage.kept_to if name in config}
    begun = {"run": scratch_key({**spec, "config": config}, parents), "kept": kept}
    _require_kept(scratch, f"{stage.name}/{scratch.name}", begun)
    for path in scratch.iterdir():
        if path.name != LEASE:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if kept:
        artifact.write_text(scratch / BEGUN, json.dumps(begun, indent=1, sort_keys=True))
    artifact.write_text(marker, key)


def _require_kept(scratch: Path, name: str, begun: Mapping[str, Any]) -> None:
    checkpoints = sorted(path.parent.name for path in scratch.glob(f"work/checkpoint-*/{CHECKPOINT_MARKER}"))
    try:
        before = json.loads((scratch / BEGUN).read_bytes())
        is_same_run, kept = before["run"] == begun["run"], dict(before["kept"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if not checkpoints or not is_same_run:
        return
    changed = {key: value for key, value in begun["kept"].items() if kept.get(key) != value}
    was = ", ".join(f"{key}: {json.dumps(kept.get(key), sort_keys=True)}" for key in changed)
    now = ", ".join(f"{key}: {json.dumps(value, sort_keys=True)}" for key, value in changed.items())
    raise UserError(
        f"{name} has a checkpoint in {scratch / 'work'} that was trained with {was}, and the study now says {now}, "
        "with which it does not go on: set that back, or delete the directory to begin anew."
    )
