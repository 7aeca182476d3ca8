"""Every stage that uses the network, against every fault of a hub: the same bytes, or one sentence in a stated time."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from effllm.data import corpus, tokenizer
from effllm.data.captions import prepare as captions
from effllm.data.images import prepare as images
from effllm.data.instructions import prepare
from effllm.errors import UserError
from effllm.evaluation import benchmark
from effllm.hub import patience
from effllm.models import import_autoencoder, import_model
from effllm.models.generators import import_generator
from effllm.runtime import stage
from effllm.runtime.artifact import Artifact
from effllm.stages import STAGES
from effllm.stages.stage import Stage
from tests.hub.server import Corrupt, Fault, Hang, Hub, Reset, Status, Truncate
from tests.unit.data.autoencoders import save_autoencoder

LONGEST_WAIT_S = 63
"""What `effllm.hub` says of its patience, without a Retry-After: a minute in all."""
LARGE = (".parquet", "model.safetensors", "tokenizer.json")
CDN = "GET cdn "
SURVIVED: dict[str, tuple[str, Fault]] = {
    "429 with Retry-After": (CDN, Status(429, {"Retry-After": "7"})),
    "503 with Retry-After": (CDN, Status(503, {"Retry-After": "7"})),
    "503 of the list": ("/tree/", Status(503)),
    "reset in mid-body": (CDN, Reset(after=500)),
    "reset of the list": ("/tree/", Reset(after=20)),
    "truncation": (CDN, Truncate(after=500)),
    "stall": (CDN, Hang(seconds=1.5, after=500)),
    "flipped bytes": (CDN, Corrupt()),
    "expired address": (CDN, Status(403)),
}
ENDED: dict[str, tuple[str, Fault, str]] = {
    "429 for ever": (CDN, Status(429), r"limits this host's requests \(429\): run again later, or set HF_TOKEN"),
    "429 for an hour": (CDN, Status(429, {"Retry-After": "3600"}), "the hub asks to wait 3600 s: run again later"),
    "503 for ever": (CDN, Status(503), "the hub answers 503 .*run again later, what came so far is kept"),
    "reset for ever": (
        CDN,
        Reset(after=1),
        r"it breaks off \(ReadError: .* time; what came is kept, so run",
    ),
    "truncation for ever": (
        CDN,
        Truncate(after=1),
        r"it breaks off \(Remote.* time; what came is kept, so run",
    ),
    "flipped bytes for ever": (CDN, Corrupt(), "another sha256 digest than the hub lists .*over another network"),
    "403 of the files": (
        "/resolve/",
        Status(403, {"X-Error-Code": "GatedRepo"}),
        "is gated: accept its licence at .* and set HF_TOKEN",
    ),
}
REFUSED: dict[str, tuple[Callable[[Hub, pytest.MonkeyPatch], None], str, bool, str]] = {
    # What happens to the hub, the access of the repository, whether the revision is there, what is said.
    "revision missing": (lambda hub, patch: None, "open", False, r"has no revision 0{40}: take a commit that http"),
    "401": (lambda hub, patch: None, "gated", True, "is gated: accept its licence at .* and set HF_TOKEN"),
    "403": (
        lambda hub, patch: (hub.tokens.update(mine=set()), patch.setenv("HF_TOKEN", "mine")),
        "gated",
        True,
        "the account of HF_TOKEN has no access: accept its licence",
    ),
    "a token of nobody": (
        lambda hub, patch: patch.setenv("HF_TOKEN", "stale"),
        "open",
        True,
        r"does not accept HF_TOKEN \(401\).*make a new token",
    ),
    "no network": (
        lambda hub, patch: patch.setattr(constants, "ENDPOINT", "http://hub.invalid"),
        "open",
        True,
        "cannot be resolved, so this host has no network or no DNS; run this stage where the network is",
    ),
    "no hub": (
        lambda hub, patch: patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9"),
        "open",
        True,
        "does not answer .*check the network of this host",
    ),
}


class Downloading:
    """A stage, the repository that it needs, and its configuration at a revision."""

    def __init__(self, name: str, build: Callable[..., None], kind: str, repo: str, files: dict[str, bytes], config):
        self.name, self.build, self.kind, self.repo, self.files, self.config = name, build, kind, repo, files, config

    def run(self, hub: Hub, results: Path, access: str = "open", exists: bool = True) -> Artifact:
        """Publish the repository and build the artifact."""
        revision = hub.add(self.kind, self.repo, self.files, access, LARGE)
        config = self.config(revision if exists else "0" * 40)
        spec = {"stage": self.name, "version": STAGES[self.name].version, "config": config}
        return stage.run(STAGES[self.name], self.build, spec=spec, inputs={}, output=results / self.name / "x")


def parquet(rows: list[dict]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def document(number: int) -> dict:
    return {
        "text": f"Document {number} says that {number * 7919 % 10_007} follows {number % 13}.",
        "id": f"<urn:uuid:{number:08d}>",
        "dump": "CC-MAIN-2024-10",
        "url": f"https://example.org/{number}",
        "file_path": "crawl-data/1.warc.gz",
        "language": "en",
        "language_score": 0.9,
        "token_count": 50,
        "score": 3.2,
        "int_score": 3,
    }


def picture(number: int) -> dict:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (number, 3 * number, 7)).save(buffer, "PNG")
    return {"image": {"bytes": buffer.getvalue(), "path": f"{number}.png"}, "label": number % 3}


def model_files(directory: Path) -> dict[str, bytes]:
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    shape = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    words = {"<s>": 0, "</s>": 1, "<unk>": 2} | {f"w{index}": index for index in range(3, 64)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    LlamaForCausalLM(shape).save_pretrained(directory)
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(directory)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def pipeline_files() -> dict[str, bytes]:
    """The parts of a pipeline of Wan, as far as the stage looks into them."""
    import torch
    from safetensors.torch import save

    configs = {
        "model_index.json": {"_class_name": "WanPipeline"},
        "transformer/config.json": {"_class_name": "WanTransformer3DModel", "patch_size": [1, 2, 2]},
        "vae/config.json": {"_class_name": "AutoencoderKLWan", "dim_mult": [1, 2], "temperal_downsample": [True]},
        "text_encoder/config.json": {},
        "tokenizer/tokenizer_config.json": {},
        "scheduler/scheduler_config.json": {},
    }
    weights = save({"weight": torch.arange(1000, dtype=torch.float32)})
    found = {path: json.dumps(config).encode() for path, config in configs.items()}
    # One of them large.
    names = ("transformer/diffusion_pytorch_model", "vae/small", "text_encoder/small")
    return found | {f"{name}.safetensors": weights for name in names}


def dataset_files(splits: dict[str, list[dict]]) -> dict[str, bytes]:
    lines = "".join(f"  - split: {split}\n    path: {split}.parquet\n" for split in splits)
    readme = f"---\nconfigs:\n- config_name: default\n  data_files:\n{lines}---\n"
    return {"README.md": readme.encode()} | {f"{split}.parquet": parquet(rows) for split, rows in splits.items()}


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Downloading]:
    model = model_files(tmp_path_factory.mktemp("model"))
    saved = tmp_path_factory.mktemp("autoencoder")
    save_autoencoder(saved)
    autoencoder = {path.name: path.read_bytes() for path in saved.iterdir()}
    documents = dataset_files({"train": [document(number) for number in range(400)]})
    pairs = [{"prompt": f"What is {n}?", "response": f"It is {n * 31} of {n}."} for n in range(400)]
    case = {"narrative": "A case.", "question": "Who?", "choices": "['Ann', 'Bob']", "answer_choice": "Ann"}
    splits = ("murder_mysteries", "object_placements", "team_allocation")
    cases = {split: [case | {"answer_index": n % 2, "question": f"Who, {n}?"} for n in range(40)] for split in splits}
    task = {"kind": "harness", "task": "leaderboard_musr", "metric": "acc_norm", "chance_level": 0.4}

    def hub_source(repo: str) -> Callable[[str], dict]:
        return lambda revision: {"kind": "hub", "repo": repo, "revision": revision}

    def sampled(repo: str, **settings) -> Callable[[str], dict]:
        return lambda revision: {"source": hub_source(repo)(revision) | settings, "held_out_fraction": 0.2}

    found = (
        Downloading("corpus", corpus.build, "dataset", "owner/text", documents, sampled("owner/text")),
        Downloading(
            "tokenizer",
            tokenizer.build,
            "model",
            "owner/words",
            {name: data for name, data in model.items() if "token" in name},
            lambda revision: {"tokenizer": hub_source("owner/words")(revision)},
        ),
        Downloading(
            "instructions",
            prepare.build,
            "dataset",
            "owner/chat",
            dataset_files({"train": pairs}),
            sampled("owner/chat", columns={"kind": "prompt_response"}),
        ),
        Downloading(
            "images",
            images.build,
            "dataset",
            "owner/pictures",
            dataset_files({"train": [picture(number) for number in range(60)]}),
            lambda revision: sampled("owner/pictures")(revision) | {"size": 4},
        ),
        Downloading(
            "captions",
            captions.build,
            "dataset",
            "owner/art",
            dataset_files({"train": [picture(number) | {"text": f"picture {number}"} for number in range(60)]}),
            lambda revision: sampled("owner/art")(revision) | {"shapes": ["4x4"]},
        ),
        Downloading(
            "autoencoder", import_autoencoder.build, "model", "owner/vae", autoencoder, hub_source("owner/vae")
        ),
        Downloading(
            "generator", import_generator.build, "model", "owner/clips", pipeline_files(), hub_source("owner/clips")
        ),
        Downloading("model", import_model.build, "model", "owner/name", model, hub_source("owner/name")),
        Downloading(
            "benchmark",
            benchmark.build,
            "dataset",
            "TAUR-Lab/MuSR",
            dataset_files(cases),
            lambda revision: {"benchmark": task | {"revision": revision}},
        ),
    )
    return {each.name: each for each in found}


EVERY_STAGE = [name for name, each in STAGES.items() if type(each).hub_source is not Stage.hub_source]


@pytest.fixture(scope="module")
def whole(stages: dict[str, Downloading], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Digests of each stage's payload from a hub without faults."""
    found = {}
    with Hub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path_factory.mktemp("token") / "token"))
        patch.delenv("HF_TOKEN", raising=False)
        for name, each in stages.items():
            found[name] = each.run(hub, tmp_path_factory.mktemp(name) / "results").manifest.payload
    return found


def test_the_table_has_every_stage_that_takes_something_from_the_hub(stages: dict[str, Downloading]) -> None:
    assert sorted(stages) == sorted(EVERY_STAGE)


@pytest.mark.parametrize("fault", SURVIVED)
@pytest.mark.parametrize("name", EVERY_STAGE)
def test_what_passes_leaves_the_same_bytes(
    hub: Hub, waits: list[float], stages, whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, fault: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    pattern, answer = SURVIVED[fault]
    hub.fault(pattern, answer, times=2 if isinstance(answer, Status) and answer.code != 403 else 1)
    built = stages[name].run(hub, tmp_path / "results")
    assert built.manifest.payload == whole[name]
    assert sum(waits) <= LONGEST_WAIT_S and bool(waits) == (fault != "flipped bytes")
    retry_after = getattr(answer, "headers", {}).get("Retry-After")
    assert retry_after is None or waits == [float(retry_after)] * 2


@pytest.mark.parametrize("fault", ENDED)
@pytest.mark.parametrize("name", EVERY_STAGE)
def test_what_does_not_pass_ends_in_a_sentence_that_names_repository_file_and_remedy(
    hub: Hub, waits: list[float], stages, tmp_path: Path, name: str, fault: str
) -> None:
    pattern, answer, said = ENDED[fault]
    hub.fault(pattern, answer, times=10_000)
    with pytest.raises(UserError, match=said) as raised:
        stages[name].run(hub, tmp_path / "results")
    sentence = str(raised.value)
    assert stages[name].repo in sentence and "\n" not in sentence
    assert any(file in sentence for file in stages[name].files)
    assert sum(waits) <= LONGEST_WAIT_S
    assert not (tmp_path / "results" / name / "x").exists()


@pytest.mark.parametrize("fault", REFUSED)
@pytest.mark.parametrize("name", EVERY_STAGE)
def test_what_is_refused_is_said_at_once(
    hub: Hub, waits: list[float], stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, fault: str
) -> None:
    happen, access, exists, said = REFUSED[fault]
    happen(hub, monkeypatch)
    with pytest.raises(UserError, match=said) as raised:
        stages[name].run(hub, tmp_path / "results", access, exists)
    assert stages[name].repo in str(raised.value) and "\n" not in str(raised.value)
    # Only a host that cannot be reached is asked again, twice.
    unanswered = [1.0, 2.0][: patience.ATTEMPTS_UNANSWERED - 1]
    assert waits == (unanswered if fault in ("no network", "no hub") else [])
    assert hub.asked("/resolve/") == []
