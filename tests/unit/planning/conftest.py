"""Artifacts made by hand, with the records that a plan reads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig

from effllm.planning.nodes import nodes_behind, targets_of
from effllm.results.provenance import Provenance
from effllm.results.telemetry import DeviceInfo, TelemetrySummary
from effllm.results.training import Efficiency
from effllm.runtime.artifact import Artifact, Parent
from effllm.runtime.publishing import publish
from effllm.stages.graph import Graph
from effllm.study import parse_study

H100 = "NVIDIA H100 80GB HBM3"
HUB_MODEL = {"source": {"kind": "hub", "repo": "a/b", "revision": "0" * 40}}


@pytest.fixture(autouse=True)
def _nothing_in_the_hubs_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)


@pytest.fixture
def study(tiny: dict[str, Any]) -> dict[str, Any]:
    """The tiny study's Table 9 alone, trained in bfloat16."""
    tiny["pretraining"] = {id: tiny["pretraining"][id] for id in ("llama-1m", "qwen2-1m", "phi3-1m")}
    for run in tiny["pretraining"].values():
        run["dtype"] = "bfloat16"
    tiny["models"] = {id: tiny["models"][id] for id in tiny["pretraining"]}
    tiny["tables"] = {"table9": tiny["tables"]["table9"] | {"models": list(tiny["models"])}}
    for key in ("finetuning", "tuning", "methods", "instructions"):
        tiny.pop(key, None)
    return tiny


@pytest.fixture
def graph_of(tmp_path: Path) -> Callable[[dict[str, Any]], Graph]:
    """The graph of a study over the test's own results."""
    return lambda study: Graph(parse_study(study, "test"), str(tmp_path / "results"))


@pytest.fixture
def write_study(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Write a study to a file."""

    def write(study: dict[str, Any]) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(study))
        return path

    return write


HOST = {"name": "node-1", "cpu": "EPYC", "cpus_usable": 2, "platform": "Linux"}


def build(graph: Graph, name: str, files: dict[str, str] | None = None, wall_s: float = 10.0, **how: Any) -> Artifact:
    """Publish a node and what it needs, with these payload and record files and this provenance."""
    results = Path(graph.results)
    for other, node in nodes_behind(graph, targets_of(graph, [name])).items():
        destination = results / other
        if destination.exists():
            continue
        staging = results / ".scratch" / other / "staging"
        staging.mkdir(parents=True)
        for file, content in (files or {}).items() if other == name else ():
            (staging / file).parent.mkdir(parents=True, exist_ok=True)
            (staging / file).write_text(content)
        parents = {key: Artifact.open(results / items[0] / "manifest.json") for key, items in node.inputs.items()}
        publish(
            staging,
            destination,
            stage=node.stage,
            id=node.id,
            spec=graph.spec(node.stage, node.id),
            parents={key: Parent(p.manifest.stage, p.manifest.id, p.sha256) for key, p in parents.items()},
            provenance=Provenance.model_validate({"wall_s": wall_s, "host": HOST} | how),
        )
    return Artifact.open(results / name / "manifest.json")


def training_records(seconds_per_step: float, power_w: float | None = None) -> dict[str, str]:
    """The files of a training of so many seconds a step on an H100."""
    unmeasured = ("flops", "latency_s_per_iteration_ci95", "mfu", "tokens", "tokens_per_s")
    efficiency = Efficiency(
        **dict.fromkeys(unmeasured),
        latency_s_per_iteration=seconds_per_step,
        device=DeviceInfo(device="cuda:0", kind="cuda", name=H100, memory_total_gb=79.6),
        reasons={},
        resumed_at_step=0,
        steps=10,
        strategy="single",
        telemetry=TelemetrySummary(
            status="ok", reason=None, windows=1, duration_s=10 * seconds_per_step, power_avg_w=power_w, reasons={}
        ),
        threads=2,
        world_size=1,
    )
    config = {"model_type": "llama", "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 2048, "tie_word_embeddings": True}
    return {Efficiency.FILE: efficiency.to_json(), "model/config.json": json.dumps(config)}


@pytest.fixture
def small_model() -> torch.nn.Module:
    """A Llama of a few thousand parameters, its head a matrix of its own."""
    from transformers import LlamaForCausalLM

    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "vocab_size": 100}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**shape, **heads, tie_word_embeddings=False))
