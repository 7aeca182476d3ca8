"""Fine-tuning suites: what is shared cannot differ by method, and what does not fit is said before any compute."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from effllm.errors import UserError
from effllm.stages.graph import Graph
from effllm.study import load_study, parse_study
from effllm.training.methods.targets import PARTLY_ADAPTED_MODEL_TYPES
from effllm.training.suites import FinetuningRun, FinetuningSuite

SUITE = "finetuning/describe"
CASES = {
    "unknown method": (
        f"{SUITE}/methods",
        ["lorra", "full-offload"],
        ["finetuning.describe.methods", "'lorra'", "'lora'"],
    ),
    "unknown model": (f"{SUITE}/models", ["lama-1m"], ["finetuning.describe.models", "'lama-1m'", "'llama-1m'"]),
    "unknown data": (f"{SUITE}/instructions", "openo1", ["finetuning.describe.instructions", "openo1", "stdlib-"]),
    "listed twice": (
        f"{SUITE}/methods",
        ["lora", "lora", "full-offload"],
        ["finetuning.describe", "lora is listed twice"],
    ),
    "kind": ("methods/lora/kind", "lorra", ["methods.lora.kind", "'lorra'", "'lora'"]),
    "unknown key": ("methods/lora/ranc", 4, ["methods.lora.ranc", "rank"]),
    "rank": ("methods/lora/rank", 200, ["finetuning.digit-parity", "methods.lora.rank 200", "64", "lower it"]),
    "ratio": ("methods/lora-plus/learning_rate_ratio", 0.5, ["methods.lora-plus.learning_rate_ratio", "0.5"]),
    "layers": ("methods/freeze/frozen_layers", 4, ["methods.freeze.frozen_layers 4", "4 layers", "lower it"]),
    "length": (f"{SUITE}/encoding/sequence_length", 1024, ["sequence_length 1024", "512 positions", "lower it"]),
    "both lengths": (f"{SUITE}/epochs", 3, ["finetuning.describe", "both are given", "give one"]),
    "micro batch": (f"{SUITE}/micro_batch_size", 3, ["samples_per_step 8", "micro_batch_size 3", "change one"]),
    "micro batch of a method": (
        f"{SUITE}/micro_batch_size_by_method",
        {"lora": 5},
        ["samples_per_step 8", "micro_batch_size 5 of lora"],
    ),
    "ranks": (
        f"{SUITE}/parallel_by_method",
        {"full": {"strategy": "ddp", "devices": 3}},
        ["samples_per_step 8", "times 3 ranks of full"],
    ),
    "fsdp2": (f"{SUITE}/parallel", {"strategy": "fsdp2", "devices": 2}, ["fsdp2", "choose ddp, zero2 or zero3"]),
    "rate of a stranger": (
        f"{SUITE}/learning_rate_by_model",
        {"phi3-1m": 1.0e-3},
        ["learning_rate_by_model", "'phi3-1m'", "not among the suite's models"],
    ),
    "override of a stranger": (
        f"{SUITE}/parallel_by_method",
        {"lorra": {}},
        ["parallel_by_method", "'lorra'", "not among the suite's methods"],
    ),
    "own steps of a method": ("methods/lora/max_steps", 10, ["methods.lora.max_steps", "unknown key"]),
    "own samples of a method": ("methods/full/samples_per_step", 4, ["methods.full.samples_per_step", "unknown key"]),
    "checkpoints": (f"{SUITE}/checkpoint_every_steps", 25, ["checkpoint_every_steps 25", "log_every_steps 10"]),
    "source's suite": ("models/llama-1m.dora/source/suite", "descr", ["models.llama-1m.dora.source.suite", "describe"]),
    "source's method": ("models/llama-1m.dora/source/method", "dra", ["models.llama-1m.dora.source.method", "dora"]),
    "source's model": ("models/llama-1m.dora/source/model", "phi3-1m", ["models.llama-1m.dora.source.model"]),
    "tuned twice": (f"{SUITE}/models", ["llama-1m", "llama-1m.dora"], ["'llama-1m.dora' is fine-tuned already"]),
    "table": ("tables/table7/suite", "descr", ["tables.table7.suite", "'descr'", "'describe'"]),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_named_with_its_remedy(tiny: dict[str, Any], name: str) -> None:
    path, value, expected = CASES[name]
    *parents, last = path.split("/")
    section = tiny
    for key in parents:
        section = section[key]
    section[last] = value
    with pytest.raises(UserError) as caught:
        parse_study(tiny, "study.yaml")
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message, message


def test_lora_on_all_layers_of_mamba_is_refused(tiny: dict[str, Any]) -> None:
    run = next(id for id, run in tiny["pretraining"].items() if run["architecture"]["model_type"] == "mamba")
    tiny["models"]["mamba"] = {"source": {"kind": "pretrained", "run": run}}
    tiny["finetuning"]["describe"]["models"] = ["mamba"]
    tiny["tables"].pop("table7")
    del tiny["models"]["llama-1m.dora"]
    with pytest.raises(UserError, match=r"methods\.lora\.target_modules: peft does not adapt all .* \(mamba\)"):
        parse_study(tiny, "study.yaml")


def test_partly_adapted_families_are_those_that_peft_refuses() -> None:
    from peft import LoraConfig, get_peft_model

    for family in ("llama", "qwen2", "phi3", "gpt_neox", "rwkv", "mamba", "mamba2"):
        shape = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 2, "pad_token_id": 0} if family not in ("rwkv", "mamba", "mamba2") else {}
        heads |= {"num_heads": 8, "head_dim": 8} if family == "mamba2" else {}
        config = AutoConfig.for_model(family, **shape, **heads)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        try:
            get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
            is_refused = False
        except ValueError:
            is_refused = True
        assert is_refused == (family in PARTLY_ADAPTED_MODEL_TYPES), family


def test_what_is_learned_from_is_no_key_of_a_method() -> None:
    """Between the runs of a suite on one model, only these keys of a run may differ."""
    by_method = {"method", "micro_batch_size", "parallel"}
    shared = set(FinetuningRun.model_fields) - by_method
    assert shared <= set(FinetuningSuite.model_fields)
    assert {key for key in FinetuningSuite.model_fields if key.endswith("_by_method")} == {
        "micro_batch_size_by_method",
        "parallel_by_method",
    }


def test_runs_of_a_suite_differ_in_their_method_only(tiny: dict[str, Any]) -> None:
    graph = Graph(parse_study(tiny, "test"))
    specs = {
        id: graph.spec("finetune", id)["config"] for id in graph.ids("finetune") if id.startswith("llama-1m.descr")
    }
    first = specs["llama-1m.describe.lora"]
    for id, spec in specs.items():
        differing = {key for key in first if spec[key] != first[key]}
        allowed = {"method"} | ({"micro_batch_size", "parallel"} if id.endswith("offload") else set())
        assert differing <= allowed, id


def test_a_finetuned_model_adds_its_nodes_and_changes_no_other(tiny: dict[str, Any]) -> None:
    before = Graph(parse_study(tiny, "test"))
    after = copy.deepcopy(tiny)
    source = {"kind": "finetuned", "suite": "describe", "model": "qwen2-1m", "method": "pissa"}
    after["models"]["tuned"] = {"source": source}
    graph = Graph(parse_study(after, "test"))
    assert set(graph.ids("merge")) - set(before.ids("merge")) == {"qwen2-1m.describe.pissa"}
    assert graph.ids("finetune") == before.ids("finetune")
    for id in graph.ids("finetune"):
        assert graph.spec("finetune", id) == before.spec("finetune", id)
    assert "tuned.int4" in graph.ids("quantize")
    assert graph.parents("quantize", "tuned.int4")["model"] == "results/merge/qwen2-1m.describe.pissa/manifest.json"


def test_a_methods_label_changes_no_spec(tiny: dict[str, Any]) -> None:
    after = copy.deepcopy(tiny)
    after["methods"]["lora"]["label"] = "Another name"
    one, other = (Graph(parse_study(study, "test")) for study in (tiny, after))
    assert all(one.spec("finetune", id) == other.spec("finetune", id) for id in one.ids("finetune"))


def test_epochs_and_warm_up_become_steps(tiny: dict[str, Any]) -> None:
    suite = tiny["finetuning"]["describe"]
    del suite["max_steps"]
    suite["epochs"] = 3
    graph = Graph(parse_study(tiny, "test"))
    run = FinetuningRun.model_validate(graph.spec("finetune", "llama-1m.describe.lora")["config"])
    recipe = run.recipe(sequences=101)
    assert (recipe.max_steps, recipe.optimizer.warmup_steps) == (36, 4), (
        "12 whole steps of 8 a pass; a tenth, rounded up"
    )
    assert recipe.global_batch_size == 8
    with pytest.raises(ValueError, match="samples_per_step 8 is more than the 7 training sequences"):
        run.recipe(sequences=7)


def test_the_papers_settings(repository: Path) -> None:
    study = load_study(repository / "config" / "paper.yaml")
    suite = study.finetuning["openo1"]
    lora = study.methods["lora"]
    assert (lora.rank, lora.alpha, lora.dropout, lora.target_modules) == (64, 128, 0.1, "all-linear")
    assert study.methods["lora-plus"].learning_rate_ratio == 16
    assert study.methods["freeze"].frozen_layers == 8
    assert (suite.encoding.sequence_length, suite.epochs, suite.optimizer.warmup_ratio) == (2048, 3, 0.1)
    rates = {model: suite.settings_of(model, "lora")["learning_rate"] for model in suite.models}
    assert rates == {
        "llama-3.2-1b": 5e-5,
        "llama-3.2-3b": 3e-5,
        "llama-3.1-8b": 2e-5,
        "qwen2.5-7b": 2e-5,
        "mistral-7b": 2e-5,
        "qwen2.5-14b": 1e-5,
    }
    assert suite.settings_of("llama-3.2-1b", "full-offload")["parallel"]["offload"]
