"""The precisions without calibration: checkpoints that Transformers loads, and their weights recomputed here."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from effllm.errors import CellFailure
from effllm.models.architectures import Architecture
from effllm.quantization import AnyPrecision, Precision
from effllm.quantization.by_gptqmodel import check_group_size
from effllm.quantization.device import require_device
from effllm.quantization.placement import quantizing_need
from effllm.quantization.weights import parameter_count, weight_bytes

FORMATS: dict[str, dict[str, Any]] = {
    "nf4": {"kind": "bnb", "format": "nf4"},
    "nf4-double": {"kind": "bnb", "format": "nf4", "double_quantization": True},
    "llm-int8": {"kind": "bnb", "format": "int8"},
    "int8": {"kind": "int8"},
    "int8-groups": {"kind": "int8", "group_size": 32},
    "fp8": {"kind": "fp8", "scales": "row", "activations": "none"},
    "fp8-tensor": {"kind": "fp8", "scales": "tensor", "activations": "none"},
}
# Of a weight: what rounding to the format may cost, relative to the largest of those that share a scale.
STEP = {"nf4": 0.16, "nf4-double": 0.17, "llm-int8": 0.51 / 127, "int8": 0.51 / 127, "fp8": 2**-4, "fp8-tensor": 2**-4}
CALIBRATION = {"corpus": "x", "samples": 1, "sequence_length": 8}
LAYER = "model.layers.0.mlp.up_proj"
# The levels of NF4, of Dettmers et al., arXiv 2305.14314, appendix E.
NF4 = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]


def precision(settings: dict[str, Any]) -> Precision:
    found: Precision = TypeAdapter(AnyPrecision).validate_python(settings)
    return found


def save_model(directory: Path, family: str = "qwen2", **keys: Any) -> Any:
    torch.manual_seed(0)
    heads = {} if family in ("gpt_neox", "mixtral") else {"num_key_value_heads": 4}
    widths = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 1, "num_attention_heads": 4}
    settings = widths | {"vocab_size": 300, "max_position_embeddings": 64, "pad_token_id": 0} | heads | keys
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings)).to(torch.bfloat16)
    model.save_pretrained(directory)
    return model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("formats") / "source"
    save_model(directory, tie_word_embeddings=True)
    return directory


@pytest.fixture(scope="module")
def packed(source: Path) -> dict[str, Path]:
    for name, settings in FORMATS.items():
        precision(settings).quantize(source, source.parent / name, None, source)
    return {name: source.parent / name for name in FORMATS}


def dequantized(name: str, tensors: dict[str, torch.Tensor]) -> np.ndarray:
    """The weights of `LAYER` from its tensors by the format's definition, in numpy."""
    arrays = {key.removeprefix(LAYER): tensor.float().numpy() for key, tensor in tensors.items() if LAYER in key}
    if name.startswith("nf4"):
        pairs = arrays[".weight"].astype(np.uint8).ravel()
        # The first of two weights is in the upper half of its byte.
        levels = np.array(NF4)[np.stack([pairs >> 4, pairs & 15], axis=1).ravel()]
        scales = arrays[".weight.absmax"]
        if name == "nf4-double":
            state = json.loads(bytes(arrays[".weight.quant_state.bitsandbytes__nf4"].astype(np.uint8)))
            outer = np.repeat(arrays[".weight.nested_absmax"], 256)[: len(scales)]
            scales = arrays[".weight.nested_quant_map"][scales.astype(int)] * outer + state["nested_offset"]
        return (levels.reshape(-1, 64) * scales[:, None]).reshape(320, 128)
    if name == "llm-int8":
        return arrays[".weight"] * arrays[".SCB"][:, None] / 127
    data, scale = arrays["._weight_qdata"], arrays["._weight_scale"]
    return data * np.repeat(scale, 128 // scale.shape[1], axis=1)


@pytest.mark.parametrize("name", ["nf4", "llm-int8"])
def test_over_several_devices_the_bytes_are_those_of_one(
    name: str, source: Path, packed: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Sequence[str]] = []

    def parts(devices: Sequence[str]) -> dict[str, Any]:
        loaded.append(devices)
        # Stand-ins for GPUs: each part of the model is placed by its name. Transformers takes torchao's parts on a CPU
        # among others for offloaded, and asks for a GPU.
        names = ["model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"]
        return {"device_map": dict.fromkeys(names, "cpu")}

    monkeypatch.setattr("effllm.quantization.by_loading.place", lambda need, asked: ["cuda:0", "cuda:1"])
    monkeypatch.setattr("effllm.models.loading.device_map", parts)
    precision(FORMATS[name]).quantize(source, tmp_path / name, None, tmp_path)
    assert loaded == [["cuda:0", "cuda:1"]] * 2, "quantized, then tried"
    file = "model.safetensors"
    assert (tmp_path / name / file).read_bytes() == (packed[name] / file).read_bytes()


def test_a_model_is_quantized_over_as_many_gpus_as_hold_the_result(tmp_path: Path) -> None:
    keys = {"vocab_size": 1000, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "qwen2", "tie_word_embeddings": False} | keys | heads)
    )
    # Queries and output, keys and values, and the three matrices of the feed-forward layer.
    layer = 2 * 256 * 256 + 2 * 256 * 64 + 3 * 256 * 512
    parameters = 4 * layer + 2 * 1000 * 256
    llm_int8, nf4 = (quantizing_need(precision(FORMATS[name]), parameters, tmp_path) for name in ("llm-int8", "nf4"))
    assert llm_int8.weights_b == 4 * layer + 2 * 2 * 1000 * 256
    assert nf4.weights_b == 4 * layer * 4.5 / 8 + 2 * 2 * 1000 * 256
    # A layer in 16 bits, and what eight tokens make: the head's logits in 16 and 32 bits alone take 6,000 bytes.
    assert 2 * layer + 6000 < nf4.workspace_b < 2 * layer + 6000 + 8 * 20_000
    assert parameter_count(_weights(tmp_path, {"a": (3, 4), "b": (5,)})) == 17
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    assert quantizing_need(precision(FORMATS["llm-int8"]), parameters, tmp_path).weights_b == parameters


def _weights(directory: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize("name", FORMATS)
def test_saved_weights_unpack_to_the_librarys_own_and_near_the_original(
    name: str, source: Path, packed: dict[str, Path]
) -> None:
    ours = dequantized(name, load_file(packed[name] / "model.safetensors"))
    model, keys = AutoModelForCausalLM.from_pretrained(packed[name], dtype="auto", output_loading_info=True)
    assert not any(keys[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    layer = model.get_submodule(LAYER)
    if name.startswith("nf4"):
        from bitsandbytes.functional import dequantize_4bit

        theirs = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    elif name == "llm-int8":
        from bitsandbytes.functional import int8_vectorwise_dequant

        theirs = int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)
    else:
        theirs = layer.weight.dequantize()
    # The libraries give theirs in the model's type.
    assert np.abs(ours - theirs.float().numpy()).max() <= 2**-8 * np.abs(ours).max()
    original = load_file(source / "model.safetensors")[f"{LAYER}.weight"].float().numpy()
    group = {"int8-groups": 32, "fp8-tensor": None}.get(name, 64 if name.startswith("nf4") else 128)
    largest = np.abs(original.reshape(-1, group or original.size)).max(1)
    largest = largest.repeat(original.size // len(largest)).reshape(original.shape)
    assert (np.abs(ours - original) / largest).max() <= STEP.get(name, STEP["int8"])


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_and_layers_are_counted_from_what_was_saved(name: str, source: Path, packed: dict[str, Path]) -> None:
    settings = precision(FORMATS[name])
    counted = weight_bytes(packed[name], settings)
    tensors = load_file(packed[name] / "model.safetensors")
    assert counted.bytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    weights = 4 * 128 * 128 + 3 * 128 * 320
    # The seven linear layers, and not the tied head.
    assert (counted.quantized_layers, counted.quantized_layers_bytes_16_bit) == (7, 2 * weights)
    assert counted.quantized_layers_bytes is not None
    # The formula of plans leaves out scales of rows, and what bitsandbytes notes of each layer.
    expected = settings.weight_bytes(weights, 0)
    assert expected <= counted.quantized_layers_bytes <= expected * 1.06 + 7 * 1400 * name.startswith("nf4")


def test_a_tied_head_stays_tied_and_an_untied_one_stays_in_16_bits(tmp_path: Path, packed: dict[str, Path]) -> None:
    save_model(tmp_path / "untied", tie_word_embeddings=False)
    for name, settings in FORMATS.items():
        precision(settings).quantize(tmp_path / "untied", tmp_path / name, None, tmp_path)
        for directory, tied in ((tmp_path / name, False), (packed[name], True)):
            model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
            head, table = model.get_output_embeddings(), model.get_input_embeddings()
            assert type(head) is torch.nn.Linear and head.weight.dtype == torch.bfloat16
            assert (head.weight is table.weight) == tied


def test_the_same_weights_have_the_same_bytes(source: Path, packed: dict[str, Path], tmp_path: Path) -> None:
    for name, settings in FORMATS.items():
        precision(settings).quantize(source, tmp_path / name, None, tmp_path)
        both = [
            {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}
            for directory in (packed[name], tmp_path / name)
        ]
        assert both[0] == both[1], name


@pytest.mark.parametrize("family", ["phi3", "gpt_neox", "mamba2"])
def test_other_families_are_quantized_whole(family: str, tmp_path: Path) -> None:
    """Phi-3's fused layers too: the linear layers of the decoder, each once, and outputs near those in 16 bits."""
    heads = {"num_heads": 16, "head_dim": 16, "state_size": 16, "n_groups": 1, "chunk_size": 16}
    model = save_model(tmp_path / "source", family, **(heads if family == "mamba2" else {}))
    ids = torch.randint(300, (2, 16), generator=torch.Generator().manual_seed(0))
    linear = sum(isinstance(module, torch.nn.Linear) for module in model.modules()) - 1
    for name in ("nf4", "int8"):
        precision(FORMATS[name]).quantize(tmp_path / "source", tmp_path / name, None, tmp_path)
        assert weight_bytes(tmp_path / name, precision(FORMATS[name])).quantized_layers == linear
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto")
        with torch.inference_mode():
            logits = [one(ids).logits.float().flatten() for one in (model.eval(), loaded)]
        assert torch.nn.functional.cosine_similarity(*logits, dim=0) > 0.95


def test_what_would_stay_in_16_bits_or_does_not_run_is_unsupported(tmp_path: Path) -> None:
    save_model(tmp_path / "mixture", "mixtral", num_local_experts=4, num_key_value_heads=4)
    save_model(tmp_path / "mamba", "mamba")
    for name in ("nf4", "int8"):
        with pytest.raises(CellFailure, match=r"experts\.gate_up_proj is in no linear layer") as caught:
            precision(FORMATS[name]).quantize(tmp_path / "mixture", tmp_path / name, None, tmp_path)
        assert caught.value.status == "unsupported"
        with pytest.raises(CellFailure, match="runs in 16 bits and not in this format") as caught:
            precision(FORMATS[name]).quantize(tmp_path / "mamba", tmp_path / f"{name}-mamba", None, tmp_path)
        assert caught.value.status == "unsupported"


def test_layers_of_another_kind_and_widths_that_do_not_divide_are_unsupported(tmp_path: Path) -> None:
    gpt2 = AutoConfig.for_model("gpt2", n_embd=64, n_layer=1, n_head=4, vocab_size=300, n_positions=64)
    AutoModelForCausalLM.from_config(gpt2).save_pretrained(tmp_path / "gpt2")
    save_model(tmp_path / "narrow", hidden_size=40, intermediate_size=72)
    for name, source, reason in (
        ("int8", "gpt2", r"attn\.c_attn\.weight is in no linear layer"),
        ("int8-groups", "narrow", r"group_size 32 does not divide the .*q_proj's width 40"),
    ):
        with pytest.raises(CellFailure, match=reason) as caught:
            precision(FORMATS[name]).quantize(tmp_path / source, tmp_path / "out", None, tmp_path)
        assert caught.value.status == "unsupported"
    with pytest.raises(CellFailure, match="c_attn is a transposed layer"):
        check_group_size(gpt2, 32)


def test_a_weight_beyond_the_range_is_nan(source: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.get_submodule(LAYER).weight.data[0, 0] = 1e6
    model.save_pretrained(tmp_path / "source")
    for settings in (FORMATS["nf4"], FORMATS["int8"]):
        half = precision(settings | {"compute_dtype": "float16"})
        with pytest.raises(CellFailure, match=r"up_proj\.weight.* has values beyond the range of float16") as caught:
            half.quantize(tmp_path / "source", tmp_path / half.label, None, tmp_path)
        assert caught.value.status == "nan"


def test_fp8_products_are_refused_where_nothing_multiplies_them(monkeypatch: pytest.MonkeyPatch) -> None:
    dynamic = precision({"kind": "fp8", "scales": "row"})
    with pytest.raises(CellFailure, match=r"compute capability 8\.9 or later, and this ran on cpu") as caught:
        require_device(dynamic, "cpu")
    assert caught.value.status == "unsupported"
    for capability, reason in (((8, 0), "and this one has 8.0"), ((9, 0), None)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        refusal = dynamic.refusal("cuda:0")
        assert (refusal is None) if reason is None else reason in str(refusal)
    assert precision(FORMATS["fp8"]).refusal("cpu") is None


def test_the_kernel_says_what_multiplies(packed: dict[str, Path]) -> None:
    expected = {
        "nf4": "bitsandbytes Linear4bit (cpu)",
        "llm-int8": "bitsandbytes Linear8bitLt (cpu)",
        "int8": "torchao Int8Tensor (weights cast, 16-bit product)",
        "fp8": "torchao Float8Tensor (weights cast, 16-bit product)",
    }
    for name, kernel in expected.items():
        model = AutoModelForCausalLM.from_pretrained(packed[name], dtype="auto")
        assert precision(FORMATS[name]).running_kernel(model) == kernel


def test_settings_of_another_format_and_groups_that_do_not_divide_are_refused() -> None:
    for settings, key in (
        ({"kind": "bnb", "format": "int8", "double_quantization": True}, "double_quantization is of nf4"),
        ({"kind": "bnb", "format": "nf4", "outlier_threshold": 5}, "outlier_threshold is of int8"),
        ({"kind": "fp8", "scales": "block"}, "scales"),
    ):
        with pytest.raises(ValidationError, match=key):
            precision(settings)
    assert precision({"kind": "bnb", "format": "nf4"}).plain() == {
        "kind": "bnb", "format": "nf4", "double_quantization": False, "compute_dtype": "bfloat16"
    }  # fmt: skip
    widths = {"feed-forward output": 96}
    for settings in ({"kind": "int8", "group_size": 64}, {"kind": "awq", "group_size": 64, "calibration": CALIBRATION}):
        assert "choose a divisor, such as 32" in str(precision(settings).misfit_of_widths(widths))
    # What is named divides the other layers too.
    both = precision({"kind": "int8", "group_size": 64}).misfit_of_widths({"attention": 128, "feed-forward": 160})
    assert "does not divide the feed-forward width 160 of the model; choose a divisor, such as 32" in str(both)
    gptq = {"kind": "gptq", "bits": 3, "group_size": -1, "act_order": False, "damping": 0.1, "calibration": CALIBRATION}
    words = precision(gptq).misfit_of_widths({"attention": 40})
    assert words == "3-bit numbers of the attention width 40 do not fill words of 32 bits; set bits to 8 or 4"
    assert precision(gptq | {"bits": 4}).misfit_of_widths({"attention": 40}) is None
    awq = precision({"kind": "awq", "group_size": -1, "calibration": CALIBRATION})
    phi3 = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4}
    shape = TypeAdapter(Architecture).validate_python(
        phi3 | {"model_type": "phi3", "num_key_value_heads": 4, "max_position_embeddings": 64}
    )
    assert "loses the halves of fused layers" in str(awq.misfit(shape))
    misfit = precision({"kind": "fp8", "scales": "row"}).misfit_of_widths({"feed-forward output": 72})
    assert "16 does not divide the feed-forward output width 72" in str(misfit)
