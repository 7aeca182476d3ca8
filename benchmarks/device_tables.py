"""Tables of a study from what `device.py` measured, also on another machine.

    python benchmarks/device_tables.py --study config/single-gpu-shapes.yaml --results DIR [DIR ...] --output DIR

Several DIRs are of several cards or calls; of a node that more than one of them has, the first one's counts. They are
copied, not changed. A cell that was not reached is a row with the status `timeout` and the reason.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from effllm.assembly.assemble import assemble, write_csv
from effllm.errors import CellFailure
from effllm.results.provenance import Provenance
from effllm.runtime.publishing import publish
from effllm.stages import STAGES
from effllm.stages.graph import Graph
from effllm.study import load_study

RECORD = "device.json"
Outcomes = dict[str, dict[str, Any]]


def write_tables(study: Path, results: list[Path], output: Path) -> None:
    """Every table of the study as CSV."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as together:
        outcomes = gather(results, Path(together))
        graph = Graph(load_study(study), together)
        for name in graph.tables():
            parents = graph.table_parents(name)
            for stage, manifests in parents.items():
                for path in manifests:
                    if stage in STAGES and not Path(path).exists():
                        _publish_missing(graph, stage, Path(path).parent, outcomes)
            # Tables that are made of others read them where the artifacts are.
            table = Path(together, f"{name}.csv")
            write_csv(assemble(name, graph.table_spec(name), parents), table)
            shutil.copy(table, output)
            print(f"{output / f'{name}.csv'}: {sum(map(len, parents.values()))} artifacts")


def gather(results: list[Path], together: Path) -> Outcomes:
    """Copy the artifacts of all directories into one; what became of the items, done ones before others."""
    outcomes: Outcomes = {}
    for directory in results:
        for artifact in directory.glob("*/*/manifest.json"):
            target = together / artifact.parent.relative_to(directory)
            if not target.exists():
                shutil.copytree(artifact.parent, target)
        for key, outcome in json.loads((directory / RECORD).read_text()).items():
            if outcomes.get(key, {}).get("status") != "done":
                outcomes[key] = outcome
    return outcomes


def _publish_missing(graph: Graph, stage: str, directory: Path, outcomes: Outcomes) -> None:
    """An artifact that says that its cell was not measured."""
    id = directory.name
    reason = outcomes.get(f"{stage}/{id}", {}).get("reason") or "the time on the machine was up before its turn"
    staging = directory.parent / f".{id}.missing"
    staging.mkdir(parents=True)
    publish(
        staging,
        directory,
        stage=stage,
        id=id,
        spec=graph.spec(stage, id),
        parents={},
        # No job ran.
        provenance=Provenance.model_construct(),
        failure=CellFailure("timeout", f"not measured: {reason}"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--results", type=Path, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    write_tables(arguments.study, arguments.results, arguments.output)


if __name__ == "__main__":
    main()
