"""Stage `model` on other people's directories: what it writes down, and what it refuses in one sentence."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from effllm.errors import UserError
from effllm.models.loading import load_causal_lm, load_tokenizer
from effllm.planning.verify import damage_of
from effllm.stages.graph import Graph
from effllm.study import parse_study
from tests.unit.models.foreign import ROWS, add_token, edit, edit_weights, import_model, write_composite, write_model

Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("whole") / "llama")


@pytest.fixture(scope="module")
def composite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_composite(tmp_path_factory.mktemp("whole") / "gemma3")


@pytest.fixture
def directory(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(whole, tmp_path / "model")


def imported(directory: Path, tmp_path: Path) -> dict[str, Any]:
    return import_model(directory, tmp_path / "results").json("model.json")["model"]


def refusal(directory: Path, tmp_path: Path) -> str:
    """The sentence that the stage ends with; nothing may be published."""
    with pytest.raises(UserError) as caught:
        import_model(directory, tmp_path / "results")
    sentence = str(caught.value)
    assert sentence.startswith("models.x"), sentence
    assert "\n" not in sentence
    assert len(sentence) < 400
    assert not (tmp_path / "results" / "model" / "x").exists()
    return sentence


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_record_is_what_the_files_hold(dtype: torch.dtype, tmp_path: Path) -> None:
    """config.json says bfloat16 in every case: types are read from the weights."""
    directory = write_model(tmp_path / "m", dtype=dtype)
    edit(directory, "config.json", dtype="bfloat16")
    record = imported(directory, tmp_path)
    model = load_causal_lm(directory)
    numbers = sum(weight.numel() for weight in model.parameters())
    assert record["weights"] == {str(dtype).removeprefix("torch."): numbers}
    assert record["bytes"] == numbers * dtype.itemsize
    assert (record["architecture"], record["model_type"]) == ("LlamaForCausalLM", "llama")
    assert (record["context_length"], record["embedding_rows"], record["tied_head"]) == (128, ROWS, False)
    tokenizer = record["tokenizer"]
    assert (tokenizer["bos_token_id"], tokenizer["eos_token_id"], tokenizer["pad_token_id"]) == (1, 2, 0)
    assert tokenizer["words"] == len(load_tokenizer(directory))
    assert tokenizer["adds_bos"] is False


@pytest.mark.parametrize("family", ["qwen2", "mixtral", "gpt_neox", "mamba", "mamba2", "phi3", "gpt2"])
def test_families_whose_checkpoints_have_names_of_their_own_are_imported_whole(family: str, tmp_path: Path) -> None:
    """Mixtral is stored expert by expert and fused when it is loaded, GPT-2 is stored without its prefix."""
    extra = {
        "mixtral": {"num_local_experts": 4},
        "mamba2": {"num_heads": 8, "head_dim": 8},
        "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2},
    }.get(family, {})
    directory = write_model(tmp_path / family, family, **extra)
    record = imported(directory, tmp_path)
    assert record["model_type"] == family
    published = load_causal_lm(tmp_path / "results" / "model" / "x" / "model").state_dict()
    torch.testing.assert_close(published, load_causal_lm(directory).state_dict(), rtol=0, atol=0)


def test_a_tied_head_is_read_from_configuration_and_weights(directory: Path, tmp_path: Path) -> None:
    edit(directory, "config.json", tie_word_embeddings=True)
    sentence = refusal(directory, tmp_path)
    assert "tie_word_embeddings true, but lm_head.weight and model.embed_tokens.weight differ" in sentence
    edit_weights(
        directory, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    )
    assert imported(directory, tmp_path)["tied_head"] is True
    shutil.rmtree(tmp_path / "results")
    edit_weights(directory, lambda tensors: tensors.pop("lm_head.weight"))
    assert imported(directory, tmp_path)["tied_head"] is True
    edit(directory, "config.json", tie_word_embeddings=False)
    shutil.rmtree(tmp_path / "results")
    assert "the checkpoint lacks lm_head.weight" in refusal(directory, tmp_path)


def test_the_context_of_scaled_rotary_positions_is_what_they_are_scaled_to(directory: Path, tmp_path: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
    edit(directory, "config.json", rope_parameters=scaling)
    assert imported(directory, tmp_path)["context_length"] == 128


def quantized(**settings: Any) -> Change:
    return lambda directory: edit(directory, "config.json", quantization_config=settings)


def in_text_config(directory: Path) -> None:
    edit(directory, "config.json", text_config={"quantization_config": {"quant_method": "awq", "bits": 4}})


def file(name: str, content: str | bytes) -> Change:
    data = content.encode() if isinstance(content, str) else content
    return lambda directory: (directory / name).write_bytes(data)


def setting(name: str = "config.json", **changes: Any) -> Change:
    return lambda directory: edit(directory, name, **changes)


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    return lambda directory: edit_weights(directory, change)


def link(name: str, target: str) -> Change:
    return lambda directory: (directory / name).symlink_to(target)


def index(shard: str) -> Change:
    """An index that finds the weights in a file of this name, where the weights are if the name can be one."""

    def change(directory: Path) -> None:
        shutil.move(directory / "model.safetensors", directory / "model-1.safetensors")
        content = {"weight_map": {"model.norm.weight": shard, "lm_head.weight": "model-1.safetensors"}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(content))

    return change


def as_int8(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].to(torch.int8)


def as_fp8(tensors: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)


def as_gptq(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop("model.layers.0.mlp.up_proj.weight")
    tensors["model.layers.0.mlp.up_proj.qweight"] = torch.zeros(4, 48, dtype=torch.int32)


def not_finite(value: float) -> Change:
    return weights(lambda tensors: tensors["model.norm.weight"].__setitem__(3, value))


def cut(name: str, left: int) -> Change:
    return lambda directory: os.truncate(directory / name, left)


def wider(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = torch.ones(33, dtype=torch.bfloat16)


def with_scaler(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.extra.weight"] = torch.ones(3)


def without_eos(directory: Path) -> None:
    edit(directory, "tokenizer_config.json", eos_token=None)


def as_directory(name: str) -> Change:
    return lambda directory: (directory / name).mkdir()


def as_pipe(directory: Path) -> None:
    os.mkfifo(directory / "notes.txt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # Quantized already.
        (
            quantized(quant_method="gptq", bits=4, group_size=32),
            "is quantized (gptq, 4 bits); name the 16-bit original",
        ),
        (quantized(quant_method="awq", bits=4), "quantized (awq, 4 bits)"),
        (quantized(quant_method="bitsandbytes", load_in_4bit=True), "quantized (bitsandbytes, 4 bits)"),
        (quantized(load_in_8bit=True), "quantized (bitsandbytes, 8 bits)"),
        (quantized(quant_method="fp8", weight_block_size=[128, 128]), "quantized (fp8, 8 bits)"),
        (quantized(quant_method="mxfp4"), "quantized (mxfp4, 4 bits)"),
        (
            quantized(quant_method="compressed-tensors", config_groups={"group_0": {"weights": {"num_bits": 4}}}),
            "quantized (compressed-tensors, 4 bits)",
        ),
        (in_text_config, "quantized (awq, 4 bits)"),
        (setting(compression_config={"format": "pack-quantized"}), "quantized (pack-quantized)"),
        (setting(quantization={"group_size": 64, "bits": 4}), "quantized (by an unnamed method, 4 bits)"),
        (file("quantize_config.json", '{"bits": 4, "group_size": 128}'), "4 bits, says quantize_config.json"),
        (file("hf_quant_config.json", '{"quantization": {"quant_algo": "NVFP4"}}'), "quantized (NVFP4, 4 bits"),
        (weights(as_int8), "quantized (model.layers.0.mlp.up_proj.weight is I8)"),
        (weights(as_fp8), "quantized (model.layers.0.mlp.up_proj.weight is F8_E4M3)"),
        (weights(as_gptq), "quantized (it holds model.layers.0.mlp.up_proj.qweight)"),
        # Not a model that decodes text.
        (setting(is_encoder_decoder=True), "is an encoder-decoder; name a causal language model"),
        (setting(model_type="t5"), "Transformers cannot build the model"),
        (setting(model_type="of-its-own", auto_map={"AutoConfig": "a.B"}), "Transformers cannot build the model"),
        (setting(model_type=None), "config.json has no model_type"),
        (file("adapter_config.json", "{}"), "adapter_config.json makes Transformers lay an adapter over"),
        (setting(transformers_weights="a.safetensors"), "config.json names its weights itself"),
        # Weights that are not whole.
        (file("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:00\n"), "git-lfs pointer"),
        (file("model.safetensors", ""), "model.safetensors is empty"),
        (file("model.safetensors", b"PK\3\4" + b"\0" * 100), "not a whole safetensors file"),
        (cut("model.safetensors", 5000), "not a whole safetensors file"),
        (cut("model.safetensors", 50), "not a whole safetensors file"),
        (not_finite(float("nan")), "model.norm.weight in model.safetensors holds NaN or infinite values"),
        (not_finite(float("inf")), "model.norm.weight in model.safetensors holds NaN or infinite values"),
        # Weights of another model.
        (setting(num_hidden_layers=3), "the checkpoint lacks model.layers.2"),
        (setting(num_hidden_layers=1), "the checkpoint holds what the model has not: model.layers.1"),
        (setting(num_hidden_layers=10**6), "config.json has num_hidden_layers 1000000 and the weights are"),
        (setting(head_dim=2**31), "config.json: head_dim '2147483648' is no size"),
        (setting(sliding_window="x"), "config.json: sliding_window 'x' is no size"),
        (setting(vocab_size=310), "the checkpoint holds in another shape lm_head.weight"),
        (setting(num_attention_heads=3), "Transformers cannot build the model"),
        (setting(hidden_act="nonsense"), "Transformers cannot build the model"),
        (weights(wider), "holds in another shape model.norm.weight"),
        (weights(with_scaler), "holds what the model has not: model.layers.0.extra.weight"),
        (weights(lambda tensors: tensors.pop("model.norm.weight")), "the checkpoint lacks model.norm.weight"),
        # Ids.
        (setting(pad_token_id=ROWS), f"config.json: pad_token_id '{ROWS}' is none of the {ROWS} rows"),
        (setting(eos_token_id=ROWS), f"config.json: eos_token_id '{ROWS}' is none of the {ROWS} rows"),
        (setting(eos_token_id=[2, ROWS + 1]), f"config.json: eos_token_id '{ROWS + 1}' is none of the {ROWS} rows"),
        (setting(bos_token_id=-1), "config.json: bos_token_id '-1' is none of"),
        (setting("generation_config.json", eos_token_id=[2, 9999]), "generation_config.json: eos_token_id '9999'"),
        (setting("generation_config.json", pad_token_id="0"), "generation_config.json: pad_token_id '0' is none"),
        (lambda d: add_token(d, pad_token="<PAD>"), f"pad_token '<PAD>' has the id {ROWS}, and the model has {ROWS}"),
        (lambda d: add_token(d, mask_token="<M>"), f"mask_token '<M>' has the id {ROWS}"),
        (lambda d: add_token(d, extra_special_tokens=["<more>"]), f"gives '<more>' the id {ROWS}, and the model has"),
        (without_eos, "the tokenizer has no end-of-text token; name one of its tokens as eos_token"),
        # No tokenizer.
        (lambda d: (d / "tokenizer.json").unlink(), "there is no tokenizer.json"),
        (file("tokenizer.json", "{}"), "the tokenizer cannot be loaded"),
        (file("tokenizer.json", "[]"), "tokenizer.json holds no JSON object"),
        (file("generation_config.json", '{"a'), "generation_config.json is not JSON"),
        (file("config.json", b"\xff\xfe{}"), "config.json is not JSON"),
        (file("config.json", "[" * 100_000), "config.json is nested too deeply"),
        # Names that lead elsewhere.
        (
            index("../outside.safetensors"),
            "names '../outside.safetensors', which is no *.safetensors of its own",
        ),
        (index("/tmp/nowhere.safetensors"), "names '/tmp/nowhere.safetensors', which is no"),
        (index("sub/a.safetensors"), "names 'sub/a.safetensors', which is no"),
        (index("config.json"), "names 'config.json', which is no"),
        (index("missing-dir/../a.safetensors"), "which is no"),
        (link("leak.txt", "/etc/hostname"), "'leak.txt' is a link out of the model's directory"),
        (link("leak.json", "../model/../../secret.json"), "'leak.json' is a link"),
        (link("gone.txt", "nowhere.txt"), "'gone.txt' is a link that leads nowhere"),
        (link("loop.txt", "loop.txt"), "'loop.txt' is a link that leads nowhere"),
        (as_directory("more.json"), "'more.json' is a directory"),
        (as_pipe, "'notes.txt' is no plain file"),
    ],
)
def test_what_no_later_stage_could_use_is_refused(
    directory: Path, change: Change, message: str, tmp_path: Path
) -> None:
    change(directory)
    assert message in refusal(directory, tmp_path)


def test_an_index_that_does_not_fit_its_files_is_refused(directory: Path, tmp_path: Path) -> None:
    load_causal_lm(directory).save_pretrained(directory, max_shard_size="40KB")
    (directory / "model.safetensors").unlink()
    content = json.loads((directory / "model.safetensors.index.json").read_text())
    shards = sorted(set(content["weight_map"].values()))
    assert len(shards) > 1
    moved = {**content["weight_map"], "model.norm.weight": shards[0]}
    assert content["weight_map"]["model.norm.weight"] != shards[0]
    edit(directory, "model.safetensors.index.json", weight_map=moved)
    assert f"the index says that {shards[0]} holds 'model.norm.weight'" in refusal(directory, tmp_path)
    edit(directory, "model.safetensors.index.json", weight_map=content["weight_map"])
    imported(directory, tmp_path)
    shutil.rmtree(tmp_path / "results")
    (directory / shards[-1]).unlink()
    assert f"names '{shards[-1]}', which is missing" in refusal(directory, tmp_path)


def test_weights_that_are_not_loaded_are_not_published(directory: Path, tmp_path: Path) -> None:
    """Repositories of Mistral hold the same weights in a second format, which would count twice."""
    shutil.copy(directory / "model.safetensors", directory / "consolidated.safetensors")
    artifact = import_model(directory, tmp_path / "results")
    assert "model/consolidated.safetensors" not in artifact.manifest.payload
    assert "model/model.safetensors" in artifact.manifest.payload


def test_buffers_that_old_checkpoints_hold_are_passed_over(directory: Path, tmp_path: Path) -> None:
    """Llama 2 was published with the inverse frequencies of its rotary positions, which loading ignores."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(directory, lambda tensors: tensors.update({name: torch.ones(4)}))
    assert imported(directory, tmp_path)["weights"] == {"bfloat16": 36000}


def test_a_mark_of_images_without_a_row_is_noted(directory: Path, tmp_path: Path) -> None:
    """Gemma 3 of 1B parameters has the tokenizer of its larger siblings, with one token too many."""
    add_token(directory, extra_special_tokens=["<image>"])
    edit(directory, "tokenizer_config.json", image_token="<image>")
    assert imported(directory, tmp_path)["tokenizer"]["beyond_embeddings"] == ["<image>"]


def test_a_snapshot_in_the_cache_of_the_hub_is_taken_and_its_links_only_to_its_own_blobs(
    whole: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in whole.iterdir():
        shutil.copy(path, repository / "blobs" / f"hash-of-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/hash-of-{path.name}")
    artifact = import_model(snapshot, tmp_path / "results")
    assert not any(path.is_symlink() for path in artifact.directory.rglob("*"))
    shutil.rmtree(tmp_path / "results")
    (repository / "blobs" / "leak").symlink_to("/etc/hostname")
    (snapshot / "leak.txt").symlink_to("../../blobs/leak")
    assert "'leak.txt' is a link out of the model's directory" in refusal(snapshot, tmp_path)
    (snapshot / "leak.txt").unlink()
    (repository / "refs.txt").write_text("x")
    (snapshot / "refs.txt").symlink_to("../../refs.txt")
    assert "'refs.txt' is a link out of the model's directory" in refusal(snapshot, tmp_path)


def test_links_inside_the_directory_are_followed(directory: Path, tmp_path: Path) -> None:
    (directory / "model.safetensors").rename(directory / "weights.bin")
    (directory / "model.safetensors").symlink_to("weights.bin")
    artifact = import_model(directory, tmp_path / "results")
    assert (artifact.directory / "model" / "model.safetensors").is_file()
    assert not (artifact.directory / "model" / "model.safetensors").is_symlink()


def test_verify_and_loading_see_what_leads_out_of_an_artifact(directory: Path, tmp_path: Path) -> None:
    load_causal_lm(directory).save_pretrained(directory, max_shard_size="40KB")
    (directory / "model.safetensors").unlink()
    artifact = import_model(directory, tmp_path / "results")
    assert list(damage_of(artifact.directory / "manifest.json")) == []
    published = artifact.directory / "model"
    content = json.loads((published / "model.safetensors.index.json").read_text())
    shard = content["weight_map"]["model.norm.weight"]
    (published / shard).rename(tmp_path / "outside.safetensors")
    moved = {
        name: "../../../../outside.safetensors" if file == shard else file
        for name, file in content["weight_map"].items()
    }
    edit(published, "model.safetensors.index.json", weight_map=moved)
    sentence = "names '../../../../outside.safetensors', which is no *.safetensors of its own directory"
    assert any(sentence in damage for damage in damage_of(artifact.directory / "manifest.json"))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_causal_lm(published)
    (published / shard).symlink_to(tmp_path / "outside.safetensors")
    sentence = f"{published / shard} is a link; an artifact holds plain files"
    assert sentence in list(damage_of(artifact.directory / "manifest.json"))


def test_the_study_refuses_a_directory_before_anything_runs(directory: Path, tiny: dict[str, Any]) -> None:
    """By names, configuration and headers alone, as `effllm check` and every start of the workflow do."""
    tiny["models"]["mine"] = {"source": {"kind": "local", "path": str(directory)}}
    graph = Graph(parse_study(tiny, "test"))
    graph.check_files()
    tiny["tables"]["table9"]["models"] = ["llama-1m", "mine"]
    with pytest.raises(UserError, match=r"models\.mine\.precisions\.int4: group_size 128 does not divide the .* width"):
        Graph(parse_study(tiny, "test")).check_files()
    tiny["models"]["mine"]["precisions"] = {"int4": {"group_size": -1}}
    sentence = r"models\.mine\.precisions\.int4\.calibration\.sequence_length: 256 tokens exceed the 128 positions"
    with pytest.raises(UserError, match=sentence):
        Graph(parse_study(tiny, "test")).check_files()
    tiny["models"]["mine"]["precisions"]["int4"]["calibration"] = tiny["precisions"]["int4"]["calibration"] | {
        "sequence_length": 128
    }
    Graph(parse_study(tiny, "test")).check_files()
    (directory / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=r"models\.mine\.source\.path: model\.safetensors is a git-lfs pointer"):
        graph.check_files()
    shutil.rmtree(directory)
    with pytest.raises(UserError, match=r"models\.mine\.source\.path: .* is not a directory"):
        graph.check_files()
