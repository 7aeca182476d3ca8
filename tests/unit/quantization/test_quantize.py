"""Precisions: sizes counted on disk, checkpoints that load without this package, failures that are typed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from effllm.errors import CellFailure, UserError
from effllm.models.loading import load_causal_lm
from effllm.quantization.by_gptqmodel import check_group_size, check_losses
from effllm.quantization.calibration import calibration_sequences, text_sequences
from effllm.quantization.cast import CastPrecision, cast
from effllm.quantization.gptq import GptqPrecision
from effllm.quantization.gptq_kernels import packed_shapes
from effllm.quantization.precision import Calibration
from effllm.quantization.weights import weight_bytes
from effllm.results.quantization import WeightBytes
from tests.conftest import cut_down
from tests.unit.conftest import Builder


def test_int4_loads_and_generates_without_this_package(builder: Any) -> None:
    directory = builder.build("quantize", "llama-1m.int4").directory / "model"
    code = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"m = AutoModelForCausalLM.from_pretrained({str(directory)!r})\n"
        f"t = AutoTokenizer.from_pretrained({str(directory)!r})\n"
        "print('OUT', t.decode(m.generate(**t('Return the', return_tensors='pt'), max_new_tokens=4)[0]))\n"
        "assert 'effllm' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "OUT Return the" in result.stdout


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3"])
def test_a_loaded_int4_model_computes_what_its_original_does(
    builder: Builder, tiny: dict[str, Any], tmp_path: Path, family: str
) -> None:
    """All layers are loaded and used: with layers at random values the logits of the two would be unrelated."""
    study = cut_down(tiny)
    shape = study["pretraining"]["llama-1m"]["architecture"]
    shape |= {"model_type": family, "num_key_value_heads": 4 if family == "phi3" else 2}
    int4 = study["precisions"]["int4"] | {"group_size": 32}
    study["precisions"] |= {"int4": int4, "int4-ordered": int4 | {"act_order": True}}
    own = Builder(study, tmp_path).take_text(builder)
    source = AutoModelForCausalLM.from_pretrained(own.build("pretrain", "llama-1m").directory / "model")
    ids = torch.randint(2048, (4, 64), generator=torch.Generator().manual_seed(0))
    for precision in ("int4", "int4-ordered"):
        artifact = own.build("quantize", f"llama-1m.{precision}")
        assert artifact.manifest.status == "ok", artifact.manifest.reason
        quantized, keys = AutoModelForCausalLM.from_pretrained(
            artifact.directory / "model", dtype="auto", output_loading_info=True
        )
        assert not any(keys[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        with torch.inference_mode():
            states = [model.model(ids).last_hidden_state.float().flatten() for model in (source, quantized)]
        assert torch.nn.functional.cosine_similarity(*states, dim=0) > 0.97, precision


def test_a_checkpoint_with_other_layers_than_the_model_is_refused(builder: Any, tmp_path: Path) -> None:
    source = builder.build("pretrain", "llama-1m").directory / "model"
    model = AutoModelForCausalLM.from_pretrained(source)
    model.save_pretrained(tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["model.layers.0.mlp.other_proj.weight"] = tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CellFailure, match=r"the checkpoint lacks model\.layers\.0\.mlp\.up_proj\.weight"):
        cast(tmp_path / "model", tmp_path / "cast", CastPrecision(kind="cast", dtype="bfloat16"))


def test_fused_layers_are_put_together_across_shards(tmp_path: Path) -> None:
    """Each part packed and laid out by the format's definition; the fused layer unpacks to the stacked matrix."""
    from effllm.quantization.gptq_fuse import fuse_layers

    parts = {part: torch.randint(0, 16, (32, 16), dtype=torch.int32) for part in ("gate_proj", "up_proj")}
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    for number, (part, integers) in enumerate(parts.items()):
        packed = (integers.view(4, 8, 16) << shifts[None, :, None]).sum(1).to(torch.int32)
        zeros = torch.full((1, 2), 0x77777777, dtype=torch.int32)
        tensors = {"qweight": packed, "qzeros": zeros, "scales": torch.rand(1, 16), "g_idx": torch.zeros(32)}
        named = {f"model.layers.0.mlp.{part}.{kind}": tensor for kind, tensor in tensors.items()}
        save_file(named, tmp_path / f"model-{number}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {}}))
    fuse_layers(tmp_path, "phi3")
    fused = load_file(tmp_path / "model-0.safetensors")
    assert set(fused) == {f"model.layers.0.mlp.gate_up_proj.{kind}" for kind in tensors}
    assert load_file(tmp_path / "model-1.safetensors") == {}
    packed = fused["model.layers.0.mlp.gate_up_proj.qweight"]
    unpacked = ((packed[:, None, :] >> shifts[None, :, None]) & 15).flatten(0, 1)
    assert torch.equal(unpacked, torch.cat([parts["gate_proj"], parts["up_proj"]], dim=1))
    assert fused["model.layers.0.mlp.gate_up_proj.qzeros"].shape == (1, 4)
    assert set(json.loads(index.read_text())["weight_map"].values()) == {"model-0.safetensors"}


def test_packed_integers_reproduce_the_weights_within_half_a_step(builder: Any) -> None:
    """Unpack the checkpoint here, by the format's definition, and compare it with the trained weights."""
    original = load_file(builder.build("pretrain", "llama-1m").directory / "model" / "model.safetensors")
    packed = load_file(builder.build("quantize", "llama-1m.int4").directory / "model" / "model.safetensors")
    layer = "model.layers.0.mlp.up_proj"
    shifts = torch.arange(0, 32, 4)
    # qweight [in / 8, out]: eight 4-bit values of consecutive input rows in one int32, lowest bits first.
    integers = ((packed[f"{layer}.qweight"][:, None, :] >> shifts[None, :, None]) & 15).flatten(0, 1)
    zeros = ((packed[f"{layer}.qzeros"][:, :, None] >> shifts) & 15).flatten(1) + 1
    groups = packed[f"{layer}.g_idx"].long()
    scales = packed[f"{layer}.scales"].float()
    weights = ((integers - zeros[groups]).float() * scales[groups]).T
    error = (weights - original[f"{layer}.weight"]).abs()
    # GPTQ moves later columns to make up for earlier ones, so single weights may leave their nearest step.
    assert error.mean() < 0.5 * scales.mean()
    correlation = torch.corrcoef(torch.stack([weights.flatten(), original[f"{layer}.weight"].flatten()]))[0, 1]
    assert correlation > 0.98


def test_bytes_are_those_of_the_tensors_on_disk(builder: Any) -> None:
    for variant in ("llama-1m.bfloat16", "llama-1m.int4"):
        artifact = builder.build("quantize", variant)
        tensors = load_file(artifact.directory / "model" / "model.safetensors")
        weights = artifact.json("quantization.json")["weights"]
        assert weights["bytes"] == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    parts = ("qweight", "qzeros", "scales", "g_idx")
    packed = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] in parts}
    assert weights["quantized_layers_bytes"] == sum(t.numel() * t.element_size() for t in packed.values())
    model = AutoModelForCausalLM.from_pretrained(builder.build("pretrain", "llama-1m").directory / "model")
    linear = [module for module in model.model.modules() if isinstance(module, torch.nn.Linear)]
    assert weights["quantized_layers"] == len(linear)
    assert weights["quantized_layers_bytes_16_bit"] == sum(module.weight.numel() * 2 for module in linear)


def test_bytes_are_counted_over_shards(tmp_path: Path) -> None:
    save_file({"a.weight": torch.zeros(3, 5, dtype=torch.bfloat16)}, tmp_path / "model-1.safetensors")
    save_file({"b.weight": torch.zeros(7, dtype=torch.float32)}, tmp_path / "model-2.safetensors")
    assert weight_bytes(tmp_path, CastPrecision(kind="cast", dtype="bfloat16")) == WeightBytes(
        bytes=30 + 28, quantized_layers=0, quantized_layers_bytes=None, quantized_layers_bytes_16_bit=None
    )


def test_float16_overflow_is_a_cell_with_status_nan(builder: Any, tmp_path: Path) -> None:
    source = builder.build("pretrain", "llama-1m").directory / "model"
    model = AutoModelForCausalLM.from_pretrained(source)
    model.model.norm.weight.data[0] = 1e5
    model.save_pretrained(tmp_path / "model")
    cast(tmp_path / "model", tmp_path / "bfloat16", CastPrecision(kind="cast", dtype="bfloat16"))
    with pytest.raises(CellFailure, match=r"model\.norm\.weight has values beyond the range of float16") as caught:
        cast(tmp_path / "model", tmp_path / "float16", CastPrecision(kind="cast", dtype="float16"))
    assert caught.value.status == "nan"


def test_a_group_size_that_does_not_divide_is_unsupported() -> None:
    config = AutoConfig.for_model(
        "llama", hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4, vocab_size=300
    )
    check_group_size(config, 32)
    with pytest.raises(CellFailure, match=r"group_size 64 does not divide the input width 96 of .*down_proj") as caught:
        check_group_size(config, 64)
    assert caught.value.status == "unsupported"


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_an_unknown_architecture_becomes_a_status(builder: Any, tmp_path: Path, family: str) -> None:
    from effllm.quantization.gptq_quantizer import quantize_gptq

    settings = builder.graph.study.precision_of("llama-1m", "int4")
    assert isinstance(settings, GptqPrecision)
    heads = {"num_heads": 8, "head_dim": 8} if family == "mamba2" else {}
    AutoConfig.for_model(family, hidden_size=32, num_hidden_layers=1, **heads).save_pretrained(tmp_path)
    with pytest.raises(CellFailure, match=f"does not know model_type '{family}'") as caught:
        quantize_gptq(tmp_path, tmp_path / "out", settings, tmp_path, tmp_path)
    assert caught.value.status == "unsupported"


def test_a_checkpoint_that_no_kernel_runs_is_unsupported(builder: Any, tmp_path: Path) -> None:
    import shutil

    from effllm.quantization.gptq_kernels import check_runs

    checkpoint = tmp_path / "model"
    shutil.copytree(builder.build("quantize", "llama-1m.int4").directory / "model", checkpoint)
    check_runs(checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    # Group indices and scales of groups of 16, which the CPU's kernel refuses.
    for name in [name for name in tensors if name.endswith(".g_idx")]:
        layer = name.removesuffix(".g_idx")
        tensors[name] = torch.arange(len(tensors[name]), dtype=torch.int32) // 16
        for part in ("scales", "qzeros"):
            tensors[f"{layer}.{part}"] = tensors[f"{layer}.{part}"].repeat_interleave(2, 0).contiguous()
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text())
    config["quantization_config"]["group_size"] = 16
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "quantize_config.json").unlink()
    with pytest.raises(CellFailure, match="no kernel of this machine runs it") as caught:
        check_runs(checkpoint)
    assert caught.value.status == "unsupported"


def test_a_checkpoint_that_is_not_whole_is_no_verdict_on_the_technique(builder: Any, tmp_path: Path) -> None:
    import shutil

    from effllm.quantization.gptq_kernels import check_runs

    checkpoint = tmp_path / "model"
    shutil.copytree(builder.build("quantize", "llama-1m.int4").directory / "model", checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    name = next(name for name in tensors if name.endswith(".scales"))
    save_file(tensors | {name: tensors[name][:1].clone()}, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"cannot be loaded \(it holds in another shape .*scales\): delete"):
        check_runs(checkpoint)


def test_an_operation_that_is_missing_while_weights_load_is_no_refusal(
    builder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from effllm.quantization import gptq_kernels

    def fail(*_: Any, **__: Any) -> None:
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")

    monkeypatch.setattr(gptq_kernels, "load_on", fail)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        gptq_kernels.check_runs(builder.build("quantize", "llama-1m.int4").directory / "model")


def test_the_widths_a_kernel_is_asked_for_are_those_of_the_layers_it_gets(builder: Any) -> None:
    checkpoint = builder.build("quantize", "llama-1m.int4").directory / "model"
    layers = [module for module in load_causal_lm(checkpoint).modules() if hasattr(module, "qweight")]
    assert layers
    assert packed_shapes(checkpoint) == {(layer.in_features, layer.out_features) for layer in layers}


def test_a_layer_that_the_kernel_does_not_make_is_unsupported(builder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptqmodel.nn_modules.qlinear.torch_aten_kernel import TorchAtenLinear

    from effllm.quantization.gptq_kernels import check_runs

    # What a kernel states of itself, and gptqmodel checks when a layer is made.
    monkeypatch.setattr(TorchAtenLinear, "SUPPORTS_OUT_FEATURES_DIVISIBLE_BY", [7])
    with pytest.raises(CellFailure, match=r"no kernel of this machine runs it: .*out_features") as caught:
        check_runs(builder.build("quantize", "llama-1m.int4").directory / "model")
    assert caught.value.status == "unsupported"


def test_an_error_that_the_plain_kernel_has_too_is_no_refusal(builder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.nn_modules.qlinear.torch_aten_kernel import TorchAtenLinear

    from effllm.quantization.gptq_kernels import check_runs

    def fail(*_: Any) -> None:
        raise RuntimeError("a mistake of ours")

    checkpoint = builder.build("quantize", "llama-1m.int4").directory / "model"
    for kernel in (TorchAtenLinear, TorchLinear):
        monkeypatch.setattr(kernel, "forward", fail)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        check_runs(checkpoint)


def test_an_error_outside_the_packed_layers_is_no_refusal(builder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    from effllm.quantization.gptq_kernels import check_runs

    def fail(*_: Any) -> None:
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(LlamaRMSNorm, "forward", fail)
    with pytest.raises(ValueError, match="a mistake of ours"):
        check_runs(builder.build("quantize", "llama-1m.int4").directory / "model")


@pytest.mark.skipif(torch.cuda.is_available(), reason="Marlin runs here")
def test_a_named_kernel_that_does_not_run_here_is_refused_before_quantizing(builder: Any, tmp_path: Path) -> None:
    from effllm.quantization.gptq_quantizer import quantize_gptq

    settings = builder.graph.study.precision_of("llama-1m", "int4").model_copy(update={"kernel": "marlin"})
    model = builder.build("pretrain", "llama-1m").directory / "model"
    with pytest.raises(
        UserError, match=r"kernel: 'marlin' does not run on this machine \(Marlin kernel requires CUDA\)"
    ):
        quantize_gptq(model, tmp_path / "out", settings, tmp_path / "no data", tmp_path)


def test_the_chosen_kernel_runs_wherever_the_checkpoint_is_loaded(builder: Any, tmp_path: Path) -> None:
    import shutil

    from effllm.quantization.gptq_kernels import choose_kernel

    checkpoint = tmp_path / "model"
    shutil.copytree(builder.build("quantize", "llama-1m.int4").directory / "model", checkpoint)
    found = []
    for kernel in (None, "torch"):
        if kernel:
            choose_kernel(checkpoint, f"gptq_{kernel}")
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        found.append({type(module).__name__ for module in model.modules() if hasattr(module, "qweight")})
    assert found == [{"TorchAtenLinear"}, {"TorchLinear"}]


def test_the_kernel_is_chosen_for_the_device_that_runs_it(builder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is loaded first and moved then has the CPU's kernel, which no GPU runs."""
    from optimum.gptq import GPTQQuantizer

    from effllm.quantization.gptq_kernels import check_runs

    def select(self: Any, device_map: Any, pack: bool = False) -> None:
        raise NotImplementedError(f"a kernel for {device_map}")

    checkpoint = builder.build("quantize", "llama-1m.int4").directory / "model"
    monkeypatch.setattr(GPTQQuantizer, "select_quant_linear", select)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(CellFailure, match=r"a kernel for .*cuda:0"):
        check_runs(checkpoint)


def test_calibration_is_training_text_of_the_asked_size(builder: Any) -> None:
    corpus = builder.build("corpus", "python-docs").directory
    tokenizer = AutoTokenizer.from_pretrained(builder.build("tokenizer", "python-docs-2k").directory / "tokenizer")
    calibration = Calibration(corpus="python-docs", samples=8, sequence_length=64)
    sequences = text_sequences(corpus, tokenizer, calibration)
    assert [len(sequence["input_ids"]) for sequence in sequences] == [64] * 8
    assert sequences == text_sequences(corpus, tokenizer, calibration)
    other = text_sequences(corpus, tokenizer, calibration.model_copy(update={"seed": 1}))
    assert other != sequences
    with pytest.raises(UserError, match=r"calibration\.samples: the training text has \d+ sequences of 64 tokens"):
        text_sequences(corpus, tokenizer, calibration.model_copy(update={"samples": 10**6}))
    with pytest.raises(UserError, match=r"has 0 sequences of 16777216 tokens, not 8; it has \d+ tokens: shorten"):
        text_sequences(corpus, tokenizer, calibration.model_copy(update={"sequence_length": 2**24}))


@pytest.mark.parametrize("begins", [True, False])
def test_calibration_documents_begin_as_the_tokenizer_begins_texts(tmp_path: Path, begins: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "one": 2, "two": 3}, unk_token="</s>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if begins:
        words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    pq.write_table(pa.table({"id": ["a", "b"], "text": ["one two", "two"]}), tmp_path / "train-00000.parquet")
    length = 7 if begins else 5
    (sequence,) = text_sequences(tmp_path, tokenizer, Calibration(corpus="x", samples=1, sequence_length=length))
    begin = [0] if begins else []
    first, second = [*begin, 2, 3, 1], [*begin, 3, 1]
    assert sequence["input_ids"] in (first + second, second + first)


def test_calibration_on_a_stream_takes_its_sequences_once(tmp_path: Path) -> None:
    from effllm.data.packing import build
    from effllm.runtime.stage import Job

    spec = {"config": {"kind": "synthetic", "vocab_size": 50, "tokens": 10 * 8 + 3}}
    build(
        Job(
            "tokens",
            "effllm.data.packing",
            "random",
            spec,
            {},
            {},
            tmp_path,
            tmp_path / "records",
            tmp_path / "scratch",
        )
    )
    drawn = np.fromfile(tmp_path / "train.bin", dtype="<u2")[:80].reshape(10, 8).tolist()
    calibration = Calibration(tokens="random", samples=10, sequence_length=8)
    sequences = calibration_sequences(tmp_path, tmp_path / "no-tokenizer", calibration)
    assert sorted(sequence["input_ids"] for sequence in sequences) == sorted(drawn)
    assert {tuple(sequence["attention_mask"]) for sequence in sequences} == {(1,) * 8}
    assert calibration_sequences(tmp_path, tmp_path, calibration) == sequences
    assert calibration_sequences(tmp_path, tmp_path, calibration.model_copy(update={"seed": 1})) != sequences
    fewer = calibration_sequences(tmp_path, tmp_path, calibration.model_copy(update={"samples": 3}))
    assert fewer == sequences[:3]


def test_a_quantization_error_that_is_no_number_is_a_status(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    # AWQ's word for a layer that nothing was scaled for.
    log.write_text("layer,module,loss\n0,q_proj,0.01\n0,o_proj,not applicable\n")
    check_losses(log)
    log.write_text("layer,module,loss\n0,q_proj,nan\n")
    with pytest.raises(CellFailure, match="layer 0 q_proj is nan"):
        check_losses(log)


def test_quantizing_twice_gives_the_same_bytes(builder: Any, tmp_path: Path) -> None:
    first = builder.build("quantize", "llama-1m.int4")
    study = json.loads(builder.graph.study.model_dump_json())
    again = Builder(study, tmp_path)
    for stage, id in (("corpus", "python-docs"), ("pretrain", "llama-1m")):
        assert again.build(stage, id).manifest == builder.build(stage, id).manifest
    assert again.build("quantize", "llama-1m.int4").manifest == first.manifest
    assert sys.modules["gptqmodel"]


def test_a_format_goes_through_every_stage_and_a_refusal_is_a_cell(builder: Any) -> None:
    study = json.loads(builder.graph.study.model_dump_json())
    fp8 = {"kind": "fp8", "scales": "row"}
    study["precisions"] |= {"nf4": {"kind": "bnb", "format": "nf4"}, "fp8": fp8}
    # Beside what the session has built, which is the same.
    builder = Builder(study, Path(builder.graph.results).parent)
    evaluation = builder.build("evaluate", "llama-1m.nf4.perplexity").json("evaluation.json")
    assert evaluation["divergence"]["reference"] == "bfloat16"
    assert 0 < evaluation["divergence"]["kl_nats"] < 0.1
    profile = builder.build("profile", "llama-1m.nf4").json("profile.json")
    assert profile["kernel"].startswith("bitsandbytes Linear4bit")
    if not torch.cuda.is_available():
        for stage in ("quantize", "profile"):
            manifest = builder.build(stage, "llama-1m.fp8").manifest
            assert manifest.status == "unsupported" and "compute capability 8.9" in str(manifest.reason)
