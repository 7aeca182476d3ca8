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
    "batch that is none": ("evaluation/batch_size", "many", ["evaluation.batch_size", "'many'", "or auto"]),
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
    "a precision called after another number": (
        "precisions/bfloat16",
        {"kind": "bnb", "format": "nf4"},
        ["precisions.bfloat16", "the name says bfloat16", "kind 'bnb'", "stores nf4", "call it"],
    ),
    "unknown key of a model's precision": (
        "models/llama-1m/precisions",
        {"nf4": {"double_quant": True}},
        ["models.llama-1m.precisions.nf4.double_quant", "True", "did you mean 'double_quantization'?"],
    ),
    "another kind for a model's precision": (
        "models/llama-1m/precisions",
        {"nf4": {"kind": "int8"}},
        ["models.llama-1m.precisions.nf4.kind", "add a precision"],
    ),
    "a precision called after other bits": ("precisions/int4/bits", 8, ["precisions.int4", "says int4", "stores int8"]),
    "a precision called after other bits, of one model": (
        "models/llama-1m/precisions",
        {"int4": {"bits": 8}},
        ["models.llama-1m.precisions.int4", "says int4", "stores int8"],
    ),
    "a precision called after another method": (
        "precisions/awq-4bit",
        {"kind": "bnb", "format": "nf4"},
        ["precisions.awq-4bit", "the name says awq", "kind is 'bnb'"],
    ),
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
    "precision to compare with": ("evaluation/divergence_from", "float32", ["evaluation.divergence_from", "float32"]),
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
    "an infinite rate": (
        "pretraining/llama-1m/optimizer/learning_rate",
        float("inf"),
        ["pretraining.llama-1m.optimizer.learning_rate", "inf"],
    ),
    "a rate that overflows": (
        "finetuning/describe/learning_rate",
        1e308,
        ["finetuning.describe.learning_rate", "1e+308"],
    ),
    "a number of 400 digits": (
        "pretraining/llama-1m/max_steps",
        10**400,
        ["pretraining.llama-1m.max_steps", "about 401 digits"],
    ),
    "no time to rest": ("inference/idle_s", float("nan"), ["inference.idle_s", "nan"]),
    "an empty repository": (
        "models/hub",
        {"source": {"kind": "hub", "repo": "", "revision": "0" * 40}},
        ["models.hub.source.repo", "write owner/name"],
    ),
    "a repository with a space": (
        "models/hub",
        {"source": {"kind": "hub", "repo": "Qwen /Qwen2.5", "revision": "0" * 40}},
        ["models.hub.source.repo", "write Qwen/Qwen2.5"],
    ),
    "an address for a repository": (
        "tokenizers/python-docs-2k",
        {"kind": "hub", "repo": "https://huggingface.co/Qwen/Qwen2.5-1.5B/tree/main", "revision": "0" * 40},
        ["tokenizers.python-docs-2k.repo", "write Qwen/Qwen2.5-1.5B"],
    ),
    "an address for a dataset": (
        "corpora/python-docs/source",
        {"kind": "hub", "repo": "https://huggingface.co/datasets/a/b", "revision": "0" * 40},
        ["corpora.python-docs.source.repo", "write a/b"],
    ),
    "odd rotary dimensions of llama": (
        "pretraining/llama-1m/architecture",
        {**DECODER, "model_type": "llama", "hidden_size": 12, "num_key_value_heads": 4},
        ["pretraining.llama-1m.architecture", "3 of each head"],
    ),
    "odd rotary dimensions of gpt_neox": (
        "pretraining/llama-1m/architecture",
        {**DECODER, "model_type": "gpt_neox", "hidden_size": 80},
        ["pretraining.llama-1m.architecture", "5 of each head"],
    ),
    "no rotary dimensions of gpt_neox": (
        "pretraining/llama-1m/architecture",
        {**DECODER, "model_type": "gpt_neox", "hidden_size": 12},
        ["pretraining.llama-1m.architecture", "0 of each head"],
    ),
    "heads that do not divide mamba2": (
        "pretraining/mamba2-0.3m/architecture/head_dim",
        48,
        ["pretraining.mamba2-0.3m.architecture", "expand times hidden_size 128 is not a multiple of head_dim 48"],
    ),
    "groups that do not divide the heads of mamba2": (
        "pretraining/mamba2-0.3m/architecture/n_groups",
        3,
        ["pretraining.mamba2-0.3m.architecture", "the number of heads 8 is not a multiple of n_groups 3"],
    ),
    "a kernel of another family": (
        "pretraining/mamba-0.3m/kernels",
        {"mamba2": "mamba_ssm"},
        ["pretraining.mamba-0.3m", "kernels.mamba2", "what this architecture lacks"],
    ),
    "a vocabulary below the tokenizer's": (
        "pretraining/llama-1m/architecture/vocab_size",
        1000,
        ["pretraining.llama-1m.architecture.vocab_size", "1000 rows", "2048"],
    ),
    "a prompt beyond the positions": (
        "inference/workloads/single/prompt_tokens",
        5000,
        ["inference.workloads.single", "5064 tokens", "512 positions"],
    ),
    "an evaluation beyond the positions": (
        "evaluation/max_length",
        5000,
        ["evaluation.max_length", "5000 tokens", "512 positions"],
    ),
    "a calibration beyond the positions": (
        "precisions/int4/calibration/sequence_length",
        5000,
        ["precisions.int4.calibration.sequence_length", "5000 tokens", "512 positions"],
    ),
    "ids that differ by case": (
        "models/Llama-1m",
        {"source": {"kind": "pretrained", "run": "llama-1m"}},
        ["models.Llama-1m", "'llama-1m'", "rename one"],
    ),
    "two models of one label": (
        "models/qwen2-1m/label",
        "Llama-1M",
        ["'llama-1m' and 'qwen2-1m'", "models.qwen2-1m.label"],
    ),
    "a label that is another's id": ("models/qwen2-1m/label", "phi3-1m", None),
    "a system file for a corpus": (
        "corpora/python-docs/source",
        {"kind": "files", "paths": ["/etc/passwd"]},
        ["corpora.python-docs.source.paths.0", "'/etc/passwd'", "*.parquet"],
    ),
    "a folder for instructions": (
        "instructions/stdlib-name/source",
        {"kind": "files", "paths": ["data/"], "columns": {"kind": "chat"}},
        ["instructions.stdlib-name.source.paths.0", "'data/'", "*.jsonl"],
    ),
    "a label with a line break": ("models/qwen2-1m/label", "a\nb", ["models.qwen2-1m.label", "control character"]),
    "an id as long as a file name": ("precisions/" + "x" * 200, {"kind": "cast", "dtype": "float16"}, ["x" * 50]),
    "one of several types": (
        "serving/chat/engine/flash_attention",
        "varlan",
        ["serving.chat.engine.flash_attention: 'varlan' is not allowed; choose 'varlen'"],
    ),
    "a key of a section that may be a name instead": (
        "methods/image-loha/match_parameters",
        {"rnak": 4},
        ["methods.image-loha.match_parameters.rnak: unknown key", "did you mean 'rank'?"],
    ),
    "none of several types": (
        "serving/chat/engine/flash_attention",
        1,
        ["serving.chat.engine.flash_attention: 1 is not allowed; choose 'varlen', or write true or false."],
    ),
    "on, as YAML reads it": (
        "tables/table9/precisions",
        [True],
        ["tables.table9.precisions.0: True is not text", "quotes"],
    ),
    "one value for a list": (
        "tables/table9/models",
        "llama-1m",
        ["tables.table9.models: 'llama-1m' is no list; write"],
    ),
    "a name for a section": ("pretraining/llama-1m/parallel", "ddp", ["parallel: 'ddp' is no mapping; write keys"]),
    "a number in quotes": ("pretraining/llama-1m/max_steps", "10", ["max_steps: '10' is not read as a whole number"]),
    "an entry whose id is a number": (
        "models",
        {7: {"source": {"kind": "pretrained", "run": "llama-1m"}}},
        ["models: the key 7 is not text; write it in quotes"],
    ),
    "a shape with spaces": (
        "captions/drawings/shapes",
        ["16 x 16"],
        ["captions.drawings.shapes.0: '16 x 16'", "1024x1024"],
    ),
    "warm-up": ("pretraining/llama-1m/optimizer/warmup_steps", 10_000, ["warmup_steps 10000", "lower it"]),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_named_with_its_remedy(tiny: dict[str, Any], name: str) -> None:
    path, value, expected = CASES[name]
    _set(tiny, path.replace("\\", "\0"), value)
    tiny["models"] = {
        key.replace("\0", "/") if isinstance(key, str) else key: model for key, model in tiny["models"].items()
    }
    if expected is None:
        assert parse_study(tiny, "study.yaml")
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
    with pytest.raises(UserError, match="'name' stands twice: delete one, at line"):
        load_study(path)


def test_a_tab_is_named(tmp_path: Any) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: a\nmodels:\n\tb: {}\n")
    with pytest.raises(UserError, match="a tab, at line 3, column 1; indent with spaces"):
        load_study(path)


def test_broken_yaml_is_refused_in_one_line(tmp_path: Any) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: [a\nmodels: }")
    with pytest.raises(UserError) as caught:
        load_study(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
