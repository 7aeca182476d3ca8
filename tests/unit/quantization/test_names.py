"""Ids of precisions, which tables print, against what the precisions are."""

import pytest

from effllm.quantization import check_name, read_precision

CALIBRATION = {"corpus": "text", "samples": 1, "sequence_length": 8}
GPTQ = {"kind": "gptq", "bits": 4, "group_size": 64, "act_order": False, "damping": 0.1, "calibration": CALIBRATION}
AWQ = {"kind": "awq", "group_size": 64, "calibration": CALIBRATION}
CAST = {"kind": "cast", "dtype": "bfloat16"}
NF4, LLM_INT8 = {"kind": "bnb", "format": "nf4"}, {"kind": "bnb", "format": "int8"}
FP8 = {"kind": "fp8", "scales": "row"}


@pytest.mark.parametrize(
    ("ids", "settings"),
    [
        (["bfloat16", "bf16", "baseline", "plain-BF16", "16-bit"], CAST),
        (["int4", "gptq", "gptq-4bit", "4_bits", "gptq-bfloat16", "int4-float16", "INT4-g128", "point4", "bit4"], GPTQ),
        (["awq", "awq-int4", "int4", "4bit-float16", "hawq"], AWQ),
        (["nf4", "nf4-double", "bnb-4bit", "nf4-bfloat16", "bnb"], NF4),
        (["int8", "llm-int8", "llm_int8", "bnb-8bit", "8bit"], LLM_INT8),
        (["fp8", "fp8-tensor", "float8-bf16", "8bit"], FP8),
        (["int8", "int8-groups", "w8a16"], {"kind": "int8"}),
    ],
)
def test_names_that_are_true_or_say_nothing(ids: list[str], settings: dict[str, object]) -> None:
    for id in ids:
        check_name("precisions", id, read_precision(settings))


@pytest.mark.parametrize(
    ("id", "settings", "said"),
    [
        ("bfloat16", NF4, "says bfloat16, and kind 'bnb' with these settings stores nf4"),
        ("plain-fp16", GPTQ, "says fp16, .* stores int4"),
        ("float16", CAST, "says float16, .* stores bfloat16"),
        ("int4", GPTQ | {"bits": 8}, "says int4, .* stores int8"),
        ("gptq-4-bit", GPTQ | {"bits": 3}, "says 4-bit, .* stores int3"),
        ("int4", NF4, "says int4, .* stores nf4"),
        ("int8", FP8, "says int8, .* stores fp8"),
        ("fp8", {"kind": "int8"}, "says fp8, .* stores int8"),
        ("8bit", NF4, "says 8bit, .* stores nf4"),
        ("int4-float16", CAST | {"dtype": "float16"}, "says int4, .* stores float16"),
        ("awq", GPTQ, "says awq, and kind is 'gptq'"),
        ("gptq-bfloat16", CAST, "says gptq, and kind is 'cast'"),
    ],
)
def test_names_that_would_lie_in_a_table(id: str, settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=f"^precisions.x: the name {said}; change the settings, or call it"):
        check_name("precisions.x", id, read_precision(settings))
