"""Bad configuration gets one sentence that names the key, the value and the remedy."""

from typing import Any

import pytest

from effllm.errors import UserError
from effllm.study import load_study, parse_study


def _set(study: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split("/")
    for key in parents:
        study = study[key]
    study[last] = value


DECODER = {
    "model_type": "effllm",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}

CASES = {
    "unknown key": ("pretraining/llama-1m/optimizer/learning_rat", 1.0, ["learning_rat", "learning_rate"]),
    "unknown section": ("modles", {}, ["modles", "models"]),
    "unknown key of a precision": ("precisions/int4/group_sise", 64, ["precisions.int4.group_sise", "group_size"]),
    "text for a number": (
        "pretraining/llama-1m/optimizer/learning_rate",
        "1e-4",
        ["pretraining.llama-1m.optimizer.learning_rate", "'1e-4'", "1.0e-4"],
    ),
    "missing model": ("tables/table9/models", ["lama-1m"], ["tables.table9.models", "lama-1m", "llama-1m"]),
    "missing benchmark": ("tables/table9/benchmarks", ["mmlu"], ["tables.table9.benchmarks", "mmlu", "word-order"]),
    "missing run": ("models/llama-1m/source/run", "llama", ["models.llama-1m.source.run", "llama", "llama-1m"]),
    "missing corpus": ("tokenizers/python-docs-2k/corpus", "python", ["tokenizers.python-docs-2k.corpus", "python"]),
    "id with a slash": ("models/a\\b", {"source": {"kind": "pretrained", "run": "llama-1m"}}, ["a/b", "'/'"]),
    "precision id with a dot": ("precisions/int4.1", {"kind": "cast", "dtype": "float16"}, ["int4.1", "an id holds"]),
    "group size": ("precisions/int4/group_size", 64, None),
    "group size that does not divide": (
        "pretraining/llama-1m/architecture/intermediate_size",
        320,
        ["models.llama-1m.precisions.int4", "group_size 128", "320", "64"],
    ),
    "heads": ("pretraining/llama-1m/architecture/num_attention_heads", 3, ["pretraining.llama-1m.architecture", "128"]),
    "family": (
        "pretraining/llama-1m/architecture/model_type",
        "lama",
        ["pretraining.llama-1m.architecture.model_type", "'lama'", "'llama'"],
    ),
    "unknown key of a shape": (
        "pretraining/llama-1m/architecture/hidden_sise",
        64,
        ["pretraining.llama-1m.architecture.hidden_sise", "hidden_size"],
    ),
    "attention": (
        "pretraining/llama-1m/architecture",
        {**DECODER, "attention": "gqqa"},
        ["pretraining.llama-1m.architecture.attention", "gqqa", "'mqa'"],
    ),
    "key heads of mqa": (
        "pretraining/llama-1m/architecture",
        {**DECODER, "attention": "mqa", "num_key_value_heads": 2},
        ["pretraining.llama-1m.architecture", "attention mqa", "leave the key out"],
    ),
    "experts": (
        "pretraining/llama-1m/architecture",
        {**DECODER, "feed_forward": "moe", "num_experts": 4, "num_experts_per_tok": 5},
        ["pretraining.llama-1m.architecture", "num_experts_per_tok 5", "num_experts 4"],
    ),
    "quantizer without the family": (
        "pretraining/llama-1m/architecture",
        {**DECODER, "attention": "nsa"},
        ["models.llama-1m.precisions.int4", "'effllm'", "qwen2"],
    ),
    "several devices alone": (
        "pretraining/llama-1m/parallel",
        {"devices": 2},
        ["pretraining.llama-1m.parallel", "strategy single", "ddp"],
    ),
    "ranks that do not divide the batch": (
        "pretraining/llama-1m/parallel",
        {"strategy": "ddp", "devices": 3},
        ["pretraining.llama-1m", "global_batch_size 4", "3 ranks"],
    ),
    "offload": (
        "pretraining/llama-1m/parallel",
        {"strategy": "ddp", "offload": True},
        ["pretraining.llama-1m.parallel", "offload", "zero3"],
    ),
    "baseline": ("tables/table9/baseline", "float32", ["tables.table9.baseline", "float32"]),
    "repeated model": ("tables/table9/models", ["llama-1m", "llama-1m"], ["listed twice"]),
    "source kind": ("corpora/python-docs/source/kind", "embeded", ["corpora.python-docs.source.kind", "embedded"]),
    "revision": (
        "models/hub",
        {"source": {"kind": "hub", "repo": "a/b", "revision": "main"}},
        ["models.hub.source.revision", "main", "40 hexadecimal"],
    ),
    "override of a precision": (
        "models/llama-1m/precisions",
        {"int4": {"group_size": 7}},
        ["models.llama-1m.precisions.int4", "group_size", "7"],
    ),
    "harness task": (
        "benchmarks/mmlu",
        {
            "kind": "harness",
            "task": "leaderboard_mmlu_por",
            "revision": "0" * 40,
            "metric": "acc",
            "chance_level": 0.1,
        },
        ["benchmarks.mmlu.task", "leaderboard_mmlu_por", "leaderboard_mmlu_pro"],
    ),
    "questions of the embedded instructions": (
        "instructions/stdlib-name/source/questions",
        "names",
        ["instructions.stdlib-name.source.questions", "'names'", "'describe' or 'name'"],
    ),
    "columns of instructions": (
        "instructions/stdlib-name/source",
        {"kind": "files", "paths": ["a.jsonl"]},
        ["instructions.stdlib-name.source.columns", "missing"],
    ),
    "kind of columns": (
        "instructions/stdlib-name/source",
        {"kind": "files", "paths": ["a.jsonl"], "columns": {"kind": "chats"}},
        ["instructions.stdlib-name.source.columns.kind", "'chats'", "'chat'"],
    ),
    "key of columns": (
        "instructions/stdlib-name/source",
        {"kind": "files", "paths": ["a.jsonl"], "columns": {"kind": "prompt_response", "promt": "question"}},
        ["instructions.stdlib-name.source.columns.promt", "'prompt'"],
    ),
    "answer of columns": (
        "instructions/stdlib-name/source",
        {"kind": "files", "paths": ["a.jsonl"], "columns": {"kind": "prompt_response", "answer": "{response}"}},
        ["instructions.stdlib-name.source.columns", "{reasoning}", "exactly once"],
    ),
    "revision of instructions": (
        "instructions/stdlib-name/source",
        {"kind": "hub", "repo": "a/b", "revision": "main", "columns": {"kind": "chat"}},
        ["instructions.stdlib-name.source.revision", "'main'", "40 hexadecimal"],
    ),
    "nothing held out": (
        "instructions/stdlib-name/held_out_fraction",
        0.0,
        ["instructions.stdlib-name.held_out_fraction", "0.0"],
    ),
    "negative steps": ("pretraining/llama-1m/max_steps", -1, ["pretraining.llama-1m.max_steps", "-1"]),
    "checkpoints between points of the curve": (
        "pretraining/llama-1m/checkpoint_every_steps",
        25,
        ["pretraining.llama-1m", "checkpoint_every_steps 25", "log_every_steps 10"],
    ),
    "warm-up": ("pretraining/llama-1m/optimizer/warmup_steps", 10_000, ["warmup_steps 10000", "lower it"]),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_named_with_its_remedy(tiny: dict[str, Any], name: str) -> None:
    path, value, expected = CASES[name]
    _set(tiny, path.replace("\\", "\0"), value)
    tiny["models"] = {key.replace("\0", "/"): model for key, model in tiny["models"].items()}
    if expected is None:
        assert parse_study(tiny, "study.yaml").precisions["int4"].group_size == value
        return
    with pytest.raises(UserError) as caught:
        parse_study(tiny, "study.yaml")
    message = str(caught.value)
    assert message.startswith("study.yaml: ")
    assert "\n" not in message
    for part in expected:
        assert part in message, message


def test_a_missing_file_is_named(tmp_path: Any) -> None:
    with pytest.raises(UserError, match=r"nowhere.yaml: No such file"):
        load_study(tmp_path / "nowhere.yaml")


def test_a_key_that_stands_twice_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: a\nname: b\n")
    with pytest.raises(UserError, match="'name' stands twice"):
        load_study(path)


def test_broken_yaml_is_refused_in_one_line(tmp_path: Any) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: [a\nmodels: }")
    with pytest.raises(UserError) as caught:
        load_study(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
