"""What the added stage says and does, as JSON: `python use.py RESULTS`, run with the checkout on the path."""

import json
import sys
from pathlib import Path

import numpy as np
from effllm.quantization.count_zeros import build
from safetensors.numpy import save_file

from effllm.cluster.requests import request
from effllm.results.provenance import Provenance
from effllm.runtime.publishing import publish
from effllm.runtime.stage import run
from effllm.stages import STAGES
from effllm.stages.graph import Graph
from effllm.study import load_study

ID = "llama-1m.bfloat16"


def main(results: Path) -> None:
    graph = Graph(load_study(Path("config/tiny.yaml")), str(results))
    spec, parents = graph.spec("sparsity", ID), graph.parents("sparsity", ID)
    staging = results / "staging"
    (staging / "model").mkdir(parents=True)
    save_file({"weight": np.array([0.0, 1.0, 0.0, 2.0], "float32")}, staging / "model" / "model.safetensors")
    model = Path(parents["model"])
    identity = {"stage": "quantize", "id": ID, "spec": graph.spec("quantize", ID), "parents": {}}
    publish(staging, model.parent, **identity, provenance=Provenance(wall_s=1.0))
    asked = request(graph.study, "sparsity", ID, parents, cores=1)
    output = Path(graph.manifest("sparsity", ID)).parent
    built = run(STAGES["sparsity"], build, spec=spec, inputs={"model": [model]}, output=output)
    facts = {"spec": spec, "parents": parents, "request": vars(asked), "result": built.json("sparsity.json")}
    print(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
