"""Artifacts written by hand, so that every figure of a table is known."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from effllm.assembly.assemble import assemble
from effllm.errors import CellFailure
from effllm.results.provenance import Provenance
from effllm.runtime.publishing import publish
from effllm.stages.graph import Graph
from effllm.study import parse_study

NO_SENSOR = ("energy_j", "energy_scope", "energy_source", "power_avg_w", "power_peak_w", "util_nvml")
TELEMETRY = {
    **dict.fromkeys(NO_SENSOR),
    "duration_s": 2.5,
    "memory_device_avg_gb": None,
    "memory_host_avg_gb": 0.5,
    "memory_host_peak_gb": 0.6,
    "memory_host_total_gb": 25.0,
    "memory_total_gb": None,
    "reason": None,
    "reasons": {**dict.fromkeys(NO_SENSOR, "no sensor; none"), "memory_device_avg_gb": "a CPU"},
    "status": "ok",
    "util_cpu": 0.9,
    "windows": 2,
}
ENERGY = ("energy_j_per_token", "energy_above_idle_j_per_token", "decode_energy_j_per_token")
UTILIZATION = ("prefill_flops", "prefill_mfu", "decode_flops_per_step", "decode_bytes_per_step", "decode_mbu")
DEVICE = {"device": "cpu", "kind": "cpu", "name": "a CPU", "memory_total_gb": 25.0}
SHORT = {"rule": "short_windows", "severity": "warning", "message": "windows of 1 s"}
FIGURES = {
    "decode_tokens_per_s": 100.0,
    "first_token_ms_p50": 5.0,
    "first_token_ms_p95": 6.0,
    "first_token_ms_p99": 7.0,
    "generated_tokens": 200,
    "generations": 25,
    "latency_ms": 12.3456789,
    "latency_ms_ci95": [12.0, 13.0],
    "latency_ms_by_window": [12.3456789],
    "prefill_tokens_per_s": 1000.0,
    "throughput_tokens_per_s": 90.0,
    "throughput_tokens_per_s_ci95": [88.0, 92.0],
    "token_ms_p50": 1.0,
    "token_ms_p95": 2.0,
    "token_ms_p99": 3.0,
}

COST = {
    **dict.fromkeys(("truncated_requests", "scored_tokens", "generated_tokens", "model_calls"), 0),
    "batch_size": 16,
    "by_kind": {},
    "device": "cpu",
    "latency_definition": "1000 * model_seconds / requests",
    "latency_mean_ms": 3.0,
    "model_seconds": 0.06,
    "requests": 20,
    "threads": 2,
    "wall_seconds": 0.1,
}
# Ten steps of a quarter of a second; the cut-down study's steps are of 4 sequences of 64 tokens.
EFFICIENCY = {
    "device": DEVICE,
    "flops": None,
    "kernels": {},
    "latency_s_per_iteration": 0.25,
    "latency_s_per_iteration_ci95": [0.24, 0.26],
    "mfu": None,
    "reasons": {"flops": "no FLOP formula", "mfu": "no peak of 'a CPU' is known"},
    "resumed_at_step": 0,
    "steps": 10,
    "strategy": "single",
    "telemetry": TELEMETRY,
    "threads": 2,
    "tokens": 2560,
    "tokens_per_s": 1024.0,
    "world_size": 1,
}
PACKAGES = {"torch": "2.11.0", "transformers": "5.23.0", "gptqmodel": None}
QUALITY = {
    "cache_bytes_per_token": 128.0,
    "held_out_bits_per_byte": 1.5,
    "held_out_loss": 2.0,
    "held_out_loss_stderr": 0.1,
    "held_out_perplexity": 7.38905609893065,
    "held_out_tokens": 5000,
    "parameters": 1000,
    "parameters_active": 1000,
    "parameters_without_embeddings": 400,
    "reasons": {},
    "seed": 0,
    "tokens_seen": 3072,
    "train_sequences": 100,
}
# 40 steps of 8 samples in all, of which 10 were measured.
COUNTS = dict.fromkeys(("samples", "sequences", "tokens", "answer_tokens", "truncated", "other_prompts"), 8)
LEARNED = {
    "adapter_bytes": 4096,
    "data": {"train": COUNTS | {"dropped": {}, "not_learned": {}}, "held_out": None},
    "held_out_loss": 1.5,
    "held_out_loss_before": 3.0,
    "held_out_loss_before_stderr": 0.1,
    "held_out_loss_stderr": 0.05,
    "held_out_samples": 90,
    "held_out_tokens": 900,
    "learning_rate": 1e-3,
    "micro_batch_size": 4,
    "packing": False,
    "parameters": 1000,
    "parameters_trainable": 64,
    "reasons": {},
    "sample_order_sha256": "a" * 64,
    "samples_per_step": 8,
    "samples_seen": 320,
    "seed": 0,
    "steps": 40,
    "train_loss": 2.0,
    "train_loss_last": 1.25,
}


class Study:
    """Artifacts of a table written by hand, so that every figure of the table is known."""

    def __init__(self, study: dict[str, Any], root: Path):
        self.graph = Graph(parse_study(study, "test"), str(root / "results"))
        self.root = root
        self.count = 0

    def write(
        self,
        stage: str,
        id: str,
        name: str,
        content: dict[str, Any],
        failure: CellFailure | None = None,
        records: dict[str, str] | None = None,
        **more: dict[str, Any],
    ) -> None:
        """An artifact with the file `name`, <key>.json for each of `more`, and records by name."""
        self.count += 1
        staging = self.root / f"staging{self.count}"
        staging.mkdir()
        for file, value in {name: content, **{f"{key}.json": value for key, value in more.items()}}.items():
            (staging / file).write_text(json.dumps(value))
        for record, text in (records or {}).items():
            (staging / "records").mkdir(exist_ok=True)
            (staging / "records" / record).write_text(text)
        destination = Path(self.graph.manifest(stage, id)).parent
        spec = self.graph.spec(stage, id)
        provenance = Provenance(wall_s=20.0, packages=PACKAGES)
        publish(staging, destination, stage=stage, id=id, spec=spec, parents={}, provenance=provenance, failure=failure)

    def train(
        self,
        id: str,
        efficiency: dict[str, Any],
        quality: dict[str, Any] | None = None,
        failure: CellFailure | None = None,
        stage: str = "pretrain",
        held_out: dict[str, list[Any]] | None = None,
    ) -> Path:
        """A training artifact: its records and its payload. Returns its directory."""
        self.count += 1
        staging = self.root / f"staging{self.count}"
        (staging / "records").mkdir(parents=True)
        (staging / "training.json").write_text(json.dumps(QUALITY if quality is None else quality))
        (staging / "records" / "efficiency.json").write_text(json.dumps(efficiency))
        if held_out is not None:
            pq.write_table(pa.table(held_out), staging / "records" / "held_out.parquet")
        destination = Path(self.graph.manifest(stage, id)).parent
        spec = self.graph.spec(stage, id)
        provenance = Provenance(wall_s=20.0, packages=PACKAGES)
        publish(staging, destination, stage=stage, id=id, spec=spec, parents={}, provenance=provenance, failure=failure)
        return destination

    def complete(self) -> None:
        for run in self.graph.study.pretraining:
            self.train(run, EFFICIENCY)
        for id in self.graph.ids("overlap"):
            self.compare(id, covered=0)
        for model in self.graph.study.models:
            for precision, size in (("bfloat16", 1000), ("int4", 400)):
                variant = f"{model}.{precision}"
                packed = (100, 350) if precision == "int4" else (None, None)
                weights = {
                    "bytes": size,
                    "quantized_layers": 1,
                    "quantized_layers_bytes": packed[0],
                    "quantized_layers_bytes_16_bit": packed[1],
                }
                quantization = {"nominal_bits": 16, "precision": {}, "weights": weights}
                self.write("quantize", variant, "quantization.json", quantization)
                workload = {
                    "energy": {**dict.fromkeys(ENERGY), "reasons": dict.fromkeys(ENERGY, "no sensor; none")},
                    "figures": FIGURES,
                    "findings": [SHORT],
                    "reason": None,
                    "status": "ok",
                    "telemetry": {"generate": TELEMETRY, "prefill": TELEMETRY},
                    "utilization": {**dict.fromkeys(UTILIZATION), "reasons": dict.fromkeys(UTILIZATION, "a CPU")},
                }
                profile = {
                    "cpus_usable": 2,
                    "device": DEVICE,
                    "idle": TELEMETRY,
                    "protocol": self.graph.study.inference.plain(),
                    "threads": 2,
                    "workloads": {"single": workload, "batch": workload},
                }
                self.write("profile", variant, "profile.json", profile)
                self.score(variant, "adjacent-swap", 0.8 if precision == "bfloat16" else 0.6, "accuracy")
                self.score(variant, "perplexity", 2.0, "perplexity")

    def score(
        self,
        variant: str,
        benchmark: str,
        score: float,
        role: str,
        failure: CellFailure | None = None,
        ci95: list[float] | None = None,
        clusters: dict[str, list[float]] | None = None,
        samples: list[dict[str, Any]] | None = None,
        **changes: Any,
    ) -> None:
        content = {
            "chance_level": 0.5,
            "chance_meaning": "a coin",
            "ci95": ci95 or [score - 0.1, score + 0.1],
            "ci95_method": "normal",
            "cost": COST,
            "higher_is_better": role == "accuracy",
            "ignored_generation_settings": {},
            "telemetry": TELEMETRY,
            "items": 20,
            "kind": "held_out",
            "limit": None,
            "lm_eval_version": "0.4.11",
            "log_probability_dtype": "float32",
            "max_length": 256,
            "metric": "acc",
            "metrics": {},
            "reasons": {},
            "role": role,
            "score": score,
            "seed": 0,
            "stderr": 0.05,
            "stderr_source": "lm-eval",
            "task": benchmark,
            "tasks": {},
            "transformers_version": "5.23.0",
            "clusters": clusters and len(clusters),
        } | changes
        more = {"clusters": clusters} if clusters else {}
        records = {"samples.jsonl": "".join(f"{json.dumps(row)}\n" for row in samples)} if samples else {}
        self.write("evaluate", f"{variant}.{benchmark}", "evaluation.json", content, failure, records, **more)

    def compare(self, id: str, covered: int) -> None:
        """How many of a benchmark's 20 items training text has."""
        benchmark, corpus = id.split(".", 1)
        content = {
            "benchmark": benchmark,
            "corpus": corpus,
            "covered_share": 0.8,
            "items": 20,
            "items_covered": covered,
            "items_without_words": 0,
            "mean_share": covered / 20,
            "training_documents": 100,
            "words_per_gram": 5,
        }
        self.write("overlap", id, "overlap.json", content)

    def rows(self, name: str) -> list[dict[str, Any]]:
        return assemble(name, self.graph.table_spec(name), self.graph.table_parents(name)).to_dicts()


@pytest.fixture
def study(micro: dict[str, Any], tmp_path: Path) -> Study:
    study = Study(micro, tmp_path)
    study.complete()
    return study
