"""Short jobs on the GPUs of this machine, one more than there are: never two on one, each measured alone.

    python benchmarks/gpu_jobs.py --output gpu-jobs.json

Every job takes a GPU as jobs of `profiles/gpu` do, multiplies matrices for some seconds, and asks NVML whether another
process computed on its GPU meanwhile. Ends with 1 where two jobs had one GPU at a time, or one was not alone.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from effllm.runtime.artifact import write_text
from effllm.runtime.gpu_lease import announce, leased
from effllm.telemetry.gpus import cores_of_gpus

_SIZE = 8192


def main(argv: Sequence[str] | None = None) -> int:
    """Run the jobs beside each other, and compare what they saw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--on-gpu", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.on_gpu:
        print(json.dumps(multiply(arguments.seconds)))
        return 0
    if arguments.job:
        print(json.dumps(job(arguments.job, arguments.seconds, arguments.output)))
        return 0
    gpus = cores_of_gpus()
    announce(gpus)
    command = [sys.executable, __file__, "--output", str(arguments.output)]
    command += ["--seconds", str(arguments.seconds)]
    names = [f"job {number}" for number in range(1, len(gpus) + 2)]
    running = [subprocess.Popen([*command, "--job", name], stdout=subprocess.PIPE, text=True) for name in names]
    jobs = [json.loads(process.communicate()[0]) for process in running]
    together = [
        [a["job"], b["job"]]
        for a, b in combinations(jobs, 2)
        if a["gpu"] == b["gpu"] and a["began"] < b["ended"] and b["began"] < a["ended"]
    ]
    result = {"gpus": gpus, "jobs": jobs, "together_on_one": together}
    write_text(arguments.output, json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))
    return int(bool(together) or any(found["others_on_gpu"] or found["shown"] != 1 for found in jobs))


def job(name: str, seconds: float, output: Path) -> dict[str, Any]:
    """What a job of the workflow does: take a GPU, and start the work in a process that sees it alone."""
    asked = time.time()
    with leased(1, name) as share:
        command = [sys.executable, __file__, "--output", str(output), "--seconds", str(seconds)]
        began = time.time()
        said = subprocess.run(
            [*command, "--on-gpu"],
            env=os.environ | share.environment(),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            pass_fds=share.locks,
            preexec_fn=lambda: os.sched_setaffinity(0, share.cores),
        ).stdout
        ended = time.time()
    assert share.gpus is not None
    return {"job": name, "gpu": share.gpus[0], "waited_s": began - asked, "began": began, "ended": ended} | json.loads(
        said.splitlines()[-1]
    )


def multiply(seconds: float) -> dict[str, Any]:
    """Matrix products for so long, in windows of half a second: their rate, and who else was on the GPU."""
    import pynvml
    import torch

    from effllm.telemetry.devices import nvml_uuid

    a = torch.randn(_SIZE, _SIZE, device="cuda:0", dtype=torch.bfloat16)
    uuid = nvml_uuid("cuda:0")
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid.encode())
    rates: list[float] = []
    others = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        torch.cuda.synchronize()
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < 0.5:
            for _ in range(8):
                torch.mm(a, a)
            torch.cuda.synchronize()
            count += 8
        rates.append(2 * _SIZE**3 * count / (time.perf_counter() - start) / 1e12)
        others = max(others, len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)) - 1)
    return {
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "shown": torch.cuda.device_count(),
        "cores": sorted(os.sched_getaffinity(0)),
        "others_on_gpu": others,
        "tflops_median": sorted(rates)[len(rates) // 2],
        "tflops_least": min(rates),
        "tflops_most": max(rates),
    }


if __name__ == "__main__":
    sys.exit(main())
