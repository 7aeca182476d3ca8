"""One load of a model for several benchmarks: what it would save of the nodes that each load it.

    python benchmarks/shared_load.py --results results [--rounds 3] [--weights-gb 3.1] [--output figures.json]

`--results` holds models and benchmarks of the embedded study, as `make table9` leaves them. Every model there is scored
on every benchmark there twice: by one process a node, as the workflow does it, and by one process a model, which loads
it once and publishes each node's artifact when it is done. Rounds alternate, and the scores are compared.

`--weights-gb` writes a safetensors file of this size and reads it as models are read: from the disk, its pages dropped
before, and from the page cache.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from effllm.runtime.artifact import MANIFEST
from effllm.stages import STAGES
from effllm.stages.graph import Graph
from effllm.study import load_study

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "config" / "tiny.yaml"
STAGE = STAGES["evaluate"]
PARENTS = ("quantize", "benchmark")
SILENT = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def nodes_of(results: Path) -> dict[str, list[str]]:
    """Nodes by model and precision, of what is built."""
    models, benchmarks = (sorted(path.parent.name for path in results.glob(f"{s}/*/{MANIFEST}")) for s in PARENTS)
    return {model: [f"{model}.{benchmark}" for benchmark in benchmarks] for model in models}


def score_here(results: Path, output: Path, ids: list[str]) -> None:
    """Score nodes in this process, their model loaded once."""
    import effllm.quantization.loading as loading
    from effllm.evaluation.evaluate import build
    from effllm.runtime.stage import run

    graph = Graph(load_study(STUDY), str(results))
    load = loading.load_quantized
    by_path: Any = functools.cache(lambda path, device: load(by_path.model, device))

    def once(model: Any, device: str) -> Any:
        by_path.model = model
        return by_path(model.directory, device)

    setattr(loading, "load_quantized", once)  # noqa: B010
    for id in ids:
        inputs = {name: [Path(str(path))] for name, path in graph.parents("evaluate", id).items()}
        run(STAGE, build, spec=graph.spec("evaluate", id), inputs=inputs, output=output / "evaluate" / id)


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds of CPU and of the clock of a process."""
    before, began = os.times(), time.perf_counter()
    subprocess.run(
        [sys.executable, *command],
        check=True,
        capture_output=True,
        env={**os.environ, **SILENT, "PYTHONPATH": str(ROOT)},
    )
    after = os.times()
    cpu_s = after.children_user - before.children_user + after.children_system - before.children_system
    return cpu_s, time.perf_counter() - began


def apart(results: Path, output: Path, ids: list[str]) -> tuple[float, float]:
    """A process a node, as the workflow starts it."""
    graph = Graph(load_study(STUDY), str(results))
    seconds = []
    for id in ids:
        spec = output / f"{id}.json"
        spec.write_text(json.dumps(graph.spec("evaluate", id)))
        command = ["-m", "effllm.runtime.start", STAGE.module, "--spec", str(spec)]
        for name, path in graph.parents("evaluate", id).items():
            command += ["--input", f"{name}={path}"]
        seconds.append(timed([*command, "--output", str(output / "evaluate" / id)]))
    return sum(cpu for cpu, _ in seconds), sum(wall for _, wall in seconds)


def together(results: Path, output: Path, ids: list[str]) -> tuple[float, float]:
    """A process a model."""
    own = ["-m", "effllm.runtime.start", "benchmarks.shared_load"]
    return timed([*own, "--results", str(results), "--into", str(output), "--score", *ids])


def reading(size_gb: float, folder: Path) -> dict[str, float]:
    """Seconds to read weights of this size, and what they weigh."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    file = folder / "weights.safetensors"
    # Layers of 50 MB, about those of a model of 1.5 billion parameters.
    count = max(1, round(size_gb * 1e9 / 50e6))
    save_file({f"layer{n}": torch.empty(25_000_000, dtype=torch.bfloat16) for n in range(count)}, file)
    seconds = {}
    for way in ("from_disk_s", "from_page_cache_s"):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            if way == "from_disk_s":
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                tensors.get_tensor(name).clone()
        seconds[way] = time.perf_counter() - began
    return {"GB": file.stat().st_size / 1e9, **seconds}


def main() -> None:
    """Run, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weights-gb", type=float)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--score", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.score:
        score_here(arguments.results, arguments.into, arguments.score)
        return
    taken: dict[str, list[tuple[float, float]]] = {"apart": [], "together": []}
    scored: dict[str, dict[str, Any]] = {}
    nodes = nodes_of(arguments.results)
    for _ in range(arguments.rounds):
        for name, way in (("apart", apart), ("together", together)):
            with tempfile.TemporaryDirectory() as folder:
                runs = [way(arguments.results, Path(folder), ids) for ids in nodes.values()]
                taken[name].append((sum(cpu for cpu, _ in runs), sum(wall for _, wall in runs)))
                files = sorted(Path(folder).glob("evaluate/*/evaluation.json"))
                scored[name] = {file.parent.name: json.loads(file.read_text()) for file in files}
    counted = sum(map(len, nodes.values()))
    scoring_s = sum(one["cost"]["wall_seconds"] for one in scored["apart"].values())
    figures: dict[str, Any] = {
        "nodes": counted,
        "models": len(nodes),
        "scores_equal": {id: one["score"] for id, one in scored["apart"].items()}
        == {id: one["score"] for id, one in scored["together"].items()},
        "scoring_alone_wall_s": scoring_s,
        **{
            name: {
                "cpu_s": statistics.median(cpu for cpu, _ in rounds),
                "wall_s": statistics.median(wall for _, wall in rounds),
            }
            for name, rounds in taken.items()
        },
    }
    saved_s = figures["apart"]["cpu_s"] - figures["together"]["cpu_s"]
    figures["saved_cpu_s_a_node"] = saved_s / max(1, counted - len(nodes))
    if arguments.weights_gb:
        # Not in /tmp, which may be memory.
        with tempfile.TemporaryDirectory(dir=arguments.results) as place:
            figures["weights"] = reading(arguments.weights_gb, Path(place))
    text = json.dumps(figures, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
