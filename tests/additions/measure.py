"""What the additions do, as JSON in a folder: `python -m tests.additions.register tests.additions.measure FOLDER`."""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from effllm import cli
from effllm.assembly.assemble import assemble, write_csv
from effllm.models import costs
from effllm.models.families import model_config, random_model
from effllm.models.loading import load_causal_lm
from effllm.quantization.weights import weight_bytes
from effllm.stages.graph import Graph
from effllm.study.inheritance import read_study
from effllm.telemetry.sources import open_source
from tests.unit.tables.conftest import DEVICE, EFFICIENCY, ENERGY, FIGURES, TELEMETRY, UTILIZATION, Study

LENGTH, VOCABULARY = 96, 300
OVERLAP = {
    "words_per_gram": 5,
    "gram_share_compared": 1.0,
    "near_duplicate_jaccard": 0.5,
    "contained_share": 0.8,
    "maximum_jaccard": None,
    "held_out_gram_share_in_training": None,
    "held_out_byte_share_covered": {},
    "held_out_documents_covered": {},
}
STUDY = Path(__file__).with_name("study.yaml")


def counted(model: Any, length: int, backward: bool = False) -> int:
    """FLOPs that torch counts over one sequence."""
    tokens = torch.arange(length)[None] % VOCABULARY
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = model(input_ids=tokens, labels=tokens, use_cache=False)
        if backward:
            output.loss.backward()
    return counter.get_total_flops()


def attention(graph: Graph) -> dict[str, Any]:
    config = model_config(graph.study.pretraining["gated-0.3m"].architecture, VOCABULARY)
    model = random_model(config, seed=0)
    flops = counted(model, LENGTH, backward=True)
    gate = model.model.layers[0].self_attn.gate_down.weight
    return {
        "parameters": [sum(p.numel() for p in model.parameters()), costs.parameter_count(config).total],
        "flops": [flops, costs.training_flops(config, LENGTH)],
        "gate": [*gate.shape, float(gate.grad.abs().sum())],
        "saved": json.loads(config.to_json_string())["gate_dim"],
    }


def method(graph: Graph) -> dict[str, Any]:
    shape = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 12, "num_attention_heads": 4}
    config = AutoConfig.for_model("qwen2", vocab_size=VOCABULARY, num_key_value_heads=2, pad_token_id=0, **shape)
    settings = graph.study.methods["bitfit"]
    prepared = settings.apply(AutoModelForCausalLM.from_config(config), "methods.bitfit").model
    return {
        "trained": [
            sum(p.numel() for p in prepared.parameters() if p.requires_grad),
            settings.trained_parameters(config),
        ],
        "flops": [counted(prepared, LENGTH, backward=True), settings.sequence_flops(prepared, LENGTH)],
    }


def precision(graph: Graph, root: Path) -> dict[str, Any]:
    settings = graph.study.precision_of("random-qwen2", "int8-rounded")
    config = model_config(graph.study.models["random-qwen2"].source.architecture, VOCABULARY)
    source, target = root / "source", root / "target"
    random_model(config, seed=0).save_pretrained(source)
    settings.quantize(source, target, None, root)
    row = load_causal_lm(target).model.layers[0].mlp.up_proj.weight[0].float()
    described = costs.describe(config)
    packed = described.num_layers * described.layer.matmul_parameters
    total = costs.parameter_count(config).total
    return {
        "bytes": [weight_bytes(target, settings).bytes, settings.weight_bytes(packed, total - packed)],
        "levels": len(row.unique()),
    }


def tables(root: Path) -> dict[str, Any]:
    """The rows of tables over artifacts that are written by hand."""
    study = Study(read_study(STUDY), root)
    for run in ("gqa-0.3m", "gated-0.3m"):
        study.train(run, EFFICIENCY)
    workload = {
        "energy": {**dict.fromkeys(ENERGY), "reasons": dict.fromkeys(ENERGY, "no sensor")},
        "figures": FIGURES,
        "findings": [],
        "reason": None,
        "status": "ok",
        "telemetry": {"generate": TELEMETRY, "prefill": TELEMETRY},
        "utilization": {**dict.fromkeys(UTILIZATION), "reasons": dict.fromkeys(UTILIZATION, "a CPU")},
    }
    for id in ("bfloat16", "int8-rounded"):
        packed = dict.fromkeys(("quantized_layers_bytes", "quantized_layers_bytes_16_bit"))
        quantization = {
            "nominal_bits": 16,
            "precision": study.graph.study.precisions[id].plain(),
            "weights": {"bytes": 1000, "quantized_layers": 0, **packed},
        }
        study.write("quantize", f"llama-1m.{id}", "quantization.json", quantization)
        profile = {
            "cpus_usable": 2,
            "device": DEVICE,
            "idle": TELEMETRY,
            "protocol": study.graph.study.inference.plain(),
            "threads": 2,
            "workloads": dict.fromkeys(study.graph.study.inference.workloads, workload),
        }
        study.write("profile", f"llama-1m.{id}", "profile.json", profile)
        study.score(f"llama-1m.{id}", "adjacent-swap", 0.8, "accuracy")
    counts = {"documents": 1, "tokens": 10, "utf8_bytes": 40}
    splits = {"train": counts | {"documents": 8}, "held_out": counts}
    corpus = {"seen": 12, "dropped": {"exact": 3}, "splits": splits, "budget_met": None, "overlap": OVERLAP}
    for id in study.graph.ids("overlap"):
        study.compare(id, covered=0)
    study.write("corpus", "python-docs", "corpus.json", corpus)
    names = ("table3", "table9", "table90", "table90-pairs")
    table90 = root / "table90.csv"
    write_csv(assemble("table90", study.graph.table_spec("table90"), study.graph.table_parents("table90")), table90)
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        cli.main(["recommend", str(table90)])
    return {name: study.rows(name) for name in names} | {"recommended": printed.getvalue()}


def main(root: Path) -> None:
    graph = Graph(Study(read_study(STUDY), root).graph.study)
    facts = {
        "attention": attention(graph),
        "method": method(graph),
        "precision": precision(graph, root),
        "specs": {id: graph.spec("pretrain", id) for id in ("gqa-0.3m", "gated-0.3m")},
        "tables": tables(root),
        "uptime": open_source("uptime", {}).read(),
    }
    (root / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
