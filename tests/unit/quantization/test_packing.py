"""How GPTQ and AWQ pack their integers, unpacked here bit by bit, against the library's own dequantization."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from effllm.errors import CellFailure, UserError
from effllm.quantization.awq import AwqPrecision
from effllm.quantization.awq_quantizer import require_channels
from effllm.quantization.by_gptqmodel import check_group_size
from effllm.quantization.gptq_quantizer import require_words
from effllm.quantization.weights import weight_bytes

IN, OUT, GROUP = 64, 32, 32
# Where AWQ's format gemm keeps each of eight neighbouring columns in a word of 32 bits, lowest bits first.
AWQ_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]


def bits_of(words: np.ndarray, bits: int, axis: int) -> np.ndarray:
    """The integers of `bits` bits in a stream of words of 32 bits along `axis`, lowest bits first."""
    words = np.moveaxis(words.astype(np.int64) & 0xFFFFFFFF, axis, -1)
    stream = (words[..., :, None] >> np.arange(32)) & 1
    stream = stream.reshape(*words.shape[:-1], -1, bits)
    return np.moveaxis((stream << np.arange(bits)).sum(-1), -1, axis)


def unpacked_awq(tensors: dict[str, torch.Tensor], group_size: int) -> np.ndarray:
    """The weights [out, in] of a layer of AWQ's format gemm."""
    whole = {kind: bits_of(tensors[kind].numpy(), 4, axis=1) for kind in ("qweight", "qzeros")}
    eights = {kind: each.reshape(len(each), -1, 8)[..., AWQ_PLACES] for kind, each in whole.items()}
    columns = {kind: each.reshape(whole[kind].shape) for kind, each in eights.items()}
    groups = np.arange(len(columns["qweight"])) // group_size
    scales = tensors["scales"].float().numpy()[groups]
    return ((columns["qweight"] - columns["qzeros"][groups]) * scales).T


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_words_unpack_to_what_the_library_makes_of_them(bits: int) -> None:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    generator = torch.Generator().manual_seed(bits)
    integers = torch.randint(2**bits, (OUT, IN), generator=generator)
    zeros = torch.randint(1, 2**bits, (OUT, IN // GROUP), generator=generator)
    scales = torch.rand(OUT, IN // GROUP, generator=generator) + 0.5
    groups = torch.arange(IN) // GROUP
    linear = nn.Linear(IN, OUT, bias=False)
    linear.weight.data = (integers - zeros[:, groups]) * scales[:, groups]
    layer = TorchLinear(
        bits=bits, group_size=GROUP, sym=False, desc_act=False, in_features=IN, out_features=OUT, bias=False,
        pack_dtype=torch.int32, register_buffers=True,
    )  # fmt: skip
    layer.pack(linear, scales, zeros, g_idx=groups.to(torch.int32))
    # qweight [in * bits / 32, out], qzeros [groups, out * bits / 32], both a stream of bits.
    packed = bits_of(layer.qweight.numpy(), bits, axis=0)
    assert np.array_equal(packed.T, integers.numpy())
    stored = bits_of(layer.qzeros.numpy(), bits, axis=1)
    own_zeros = (stored + (zeros.T.numpy() - stored)[0, 0]) % 2**bits
    assert np.array_equal(own_zeros, zeros.T.numpy())
    ours = (packed - zeros.T.numpy()[groups]) * layer.scales.float().numpy()[groups]
    layer.post_init()
    theirs = layer.dequantize_weight().float().numpy()
    assert np.allclose(ours, theirs, rtol=2e-3, atol=1e-3)


@pytest.fixture(scope="module")
def awq(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AwqPrecision]:
    """A model of one layer without a tokenizer, and its checkpoint by AWQ, calibrated on random tokens.

    Its heads share keys and values: no other layer undoes a scaling of what the attention's output reads.
    """
    from effllm.data.packing import build
    from effllm.runtime.stage import Job

    directory = tmp_path_factory.mktemp("awq")
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", hidden_size=128, intermediate_size=192, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=128, max_position_embeddings=64, initializer_range=0.06, pad_token_id=0,
        tie_word_embeddings=True, attention_bias=True,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(directory / "source")
    (directory / "tokens").mkdir()
    spec = {"config": {"kind": "synthetic", "vocab_size": 128, "tokens": 600}}
    places = (directory / "tokens", directory / "records", directory / "scratch")
    build(Job("tokens", "effllm.data.packing", "random", spec, {}, {}, *places))
    (directory / "records").mkdir(exist_ok=True)
    calibration: dict[str, Any] = {"tokens": "random", "samples": 8, "sequence_length": 32}
    precision = AwqPrecision.model_validate({"kind": "awq", "group_size": 32, "calibration": calibration})
    precision.quantize(directory / "source", directory / "packed", directory / "tokens", directory / "records")
    return directory, precision


def test_awq_words_unpack_to_what_the_library_makes_of_them(awq: tuple[Path, AwqPrecision]) -> None:
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    directory, precision = awq
    tensors = load_file(directory / "packed" / "model.safetensors")
    source = load_file(directory / "source" / "model.safetensors")
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        prefix = f"model.layers.0.{name}"
        layer = {kind: tensors[f"{prefix}.{kind}"] for kind in ("qweight", "qzeros", "scales")}
        ours = unpacked_awq(layer, precision.group_size)
        theirs = dequantize_gemm(layer["qweight"], layer["qzeros"], layer["scales"], bits=4, group_size=32)
        assert np.allclose(ours, theirs.float().numpy().T, atol=1e-3)
        # Columns were scaled, by what the layer before undoes: the size of the weights stays what it was.
        weight = source[f"{prefix}.weight"].numpy()
        assert ours.shape == weight.shape and 0.3 < np.abs(ours).mean() / np.abs(weight).mean() < 3
    counted = weight_bytes(directory / "packed", precision)
    assert (counted.quantized_layers, counted.quantized_layers_bytes_16_bit) == (7, 2 * (3 * 128 * 128 + 3 * 128 * 192))
    assert (directory / "records" / "awq.csv").exists()


def test_an_awq_model_computes_what_its_original_does(awq: tuple[Path, AwqPrecision]) -> None:
    directory, precision = awq
    source = AutoModelForCausalLM.from_pretrained(directory / "source")
    packed, keys = AutoModelForCausalLM.from_pretrained(directory / "packed", dtype="auto", output_loading_info=True)
    assert not any(keys[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert packed.get_output_embeddings().weight is packed.get_input_embeddings().weight
    assert precision.running_kernel(packed) in ("TorchAtenAwqLinear", "AwqTorchLinear")
    ids = torch.randint(128, (4, 32), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        states = [model.model(ids).last_hidden_state.float().flatten() for model in (source, packed)]
    assert torch.nn.functional.cosine_similarity(*states, dim=0) > 0.97


def test_awq_refuses_a_kernel_that_is_not_here_and_groups_that_do_not_divide(
    awq: tuple[Path, AwqPrecision], tmp_path: Path
) -> None:
    directory, precision = awq
    marlin = precision.model_copy(update={"kernel": "marlin"})
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="kernel: 'marlin' does not run on this machine"):
            marlin.quantize(directory / "source", tmp_path / "out", directory / "tokens", tmp_path)
    groups = precision.model_copy(update={"group_size": 128})
    with pytest.raises(CellFailure, match=r"group_size 128 does not divide the input width 192 of") as caught:
        groups.quantize(directory / "source", tmp_path / "out", directory / "tokens", tmp_path)
    assert caught.value.status == "unsupported"
    model = AutoModelForCausalLM.from_pretrained(directory / "source")
    model.model.layers[0].mlp.up_proj = nn.Linear(128, 96)
    with pytest.raises(CellFailure, match=r"up_proj has 96 output channels, and the quantizer takes multiples of 64"):
        require_channels(model)


def test_what_gptqmodel_fails_in_is_a_cell_and_does_not_end_the_process(
    awq: tuple[Path, AwqPrecision], tmp_path: Path
) -> None:
    """Positions that differ by layer: its search asks for those of no layer, in a thread."""
    directory, precision = awq
    config = AutoConfig.for_model(
        "gemma3_text", hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1, vocab_size=128,
        num_key_value_heads=1, head_dim=64, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "source")
    with pytest.raises(
        CellFailure, match=r"runs in 16 bits, and gptqmodel fails in it \(TypeError: .*layer_type"
    ) as caught:
        precision.quantize(tmp_path / "source", tmp_path / "out", directory / "tokens", tmp_path)
    assert caught.value.status == "unsupported"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".with-tokenizer")]
    longer = precision.calibration.model_copy(update={"sequence_length": 65})
    with pytest.raises(
        UserError, match=r"calibration\.sequence_length: 65 tokens exceed the 64 positions of the model"
    ):
        precision.model_copy(update={"calibration": longer}).quantize(
            tmp_path / "source", tmp_path / "out", directory / "tokens", tmp_path
        )


def test_gptq_refuses_experts_in_one_tensor_and_widths_that_fill_no_words() -> None:
    mixture = AutoConfig.for_model(
        "mixtral", hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64,
        num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    with pytest.raises(CellFailure, match=r"experts\.gate_up_proj is in no linear layer, and what gptqmodel makes"):
        check_group_size(mixture, 32)
    narrow = AutoConfig.for_model(
        "qwen2", hidden_size=40, intermediate_size=72, num_hidden_layers=1, num_attention_heads=2, vocab_size=64,
        num_key_value_heads=2,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(narrow)
    require_words(model, 4)
    with pytest.raises(
        CellFailure, match=r"3-bit numbers of layers\.0\.self_attn\.q_proj's width 40 do not fill"
    ) as caught:
        require_words(model, 3)
    assert caught.value.status == "unsupported"
