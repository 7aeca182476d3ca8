"""Build tables for the price of one start: every node in a fork of a process that has imported the libraries.

python -m tests.workflow.in_forks STUDY RESULTS TABLE [TABLE ...]

Each node gets the spec, the inputs and the program that the workflow gives it. What stands is not built again.
"""

import json
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import NoReturn

# What the stages import, here so that no fork does it again.
import effllm.evaluation.benchmark
import effllm.evaluation.evaluate
import effllm.models.import_model
import effllm.profiling.inference
import effllm.quantization.quantize
import effllm.training.finetune
import effllm.training.pretrain  # noqa: F401
from effllm.assembly.assemble import write_table
from effllm.planning.nodes import TABLE, Node, nodes_behind, targets_of
from effllm.stages import STAGES
from effllm.stages.graph import Graph
from effllm.study import load_study


def build(study: Path, results: str, tables: list[str]) -> None:
    """Build the tables and all that they are made of, one after the other; exits where one fails."""
    graph = Graph(load_study(study), results)
    for name, node in nodes_behind(graph, targets_of(graph, tables)).items():
        if Path(node.path).is_file():
            continue
        child = os.fork()
        if not child:
            _become(graph, node)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:
            sys.exit(f"{name} ended with {code}")


def _become(graph: Graph, node: Node) -> NoReturn:
    code = 1
    try:
        if node.stage == TABLE:
            spec, inputs = graph.table_spec(node.id), graph.table_parents(node.id)
            write_table(node.id, spec=spec, inputs=inputs, output=node.path, log=f"{node.path}.log")
        else:
            _run(graph, node)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(graph: Graph, node: Node) -> None:
    output = Path(node.path).parent
    file = output.parent.parent / f"{node.stage}.{node.id}.spec.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(graph.spec(node.stage, node.id)))
    words = ["--spec", str(file), "--output", str(output)]
    for name, paths in graph.parents(node.stage, node.id).items():
        for path in [paths] if isinstance(paths, str) else paths:
            words += ["--input", f"{name}={path}"]
    module = STAGES[node.stage].module
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
