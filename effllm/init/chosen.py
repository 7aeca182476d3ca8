"""The models that a study is written for: where they are, what they are, and what will not work with them."""

import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from effllm.errors import UserError
from effllm.fields import LONGEST_ID, shortened
from effllm.hub.commits import commit_of
from effllm.hub.repository import Repository
from effllm.models.checkpoint.check import check_directory
from effllm.models.checkpoint.files import CONFIG, TOKENIZER_CONFIG, model_files, read_object
from effllm.models.checkpoint.headers import TensorHeader
from effllm.models.import_model import needed_files
from effllm.study.inheritance import SHIPPED, read_study

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Words by which makers tell models that were tuned to instructions, for those whose files cannot be looked at.
_TUNED = re.compile(r"(instruct|chat|[-_]it$|[-_]it[-_])", re.IGNORECASE)
_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True)
class Facts:
    """What a model's files say. config: config.json, of a composite model its text part; about: in a few words."""

    config: Mapping[str, Any]
    about: str
    has_chat_template: bool


@dataclass(frozen=True)
class ChosenModel:
    """A model of the study. facts: None where its files cannot be looked at; pin: where its commit is from."""

    id: str
    source: dict[str, str]
    facts: Facts | None
    pin: str

    @property
    def is_chat(self) -> bool:
        """Whether it is prompted in a chat template: where its tokenizer has one, else where its name says so."""
        return self.facts.has_chat_template if self.facts else bool(_TUNED.search(self.source["repo"]))

    def number(self, key: str) -> int | None:
        """A whole number of its config.json; None where that is not known."""
        value = self.facts.config.get(key) if self.facts else None
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def choose(names: Iterable[str]) -> list[ChosenModel]:
    """The models behind `--model`, each with an id of its own; `UserError` for one that no stage could use."""
    models: list[ChosenModel] = []
    for name in names:
        id = _id(name, {model.id for model in models})
        models.append(_local(name, id) if _is_path(name) else _of_hub(name, id))
    return models


def _is_path(name: str) -> bool:
    return Path(name).expanduser().exists() or name.startswith(("/", "./", "../", "~"))


def _id(name: str, taken: set[str]) -> str:
    last = Path(name.partition("@")[0].rstrip("/")).expanduser().resolve().name.lower()
    stem = re.sub(r"[^a-z0-9_.]+", "-", last).strip("-_.")[: LONGEST_ID - 3] or "model"
    numbered = (stem if number == 1 else f"{stem}-{number}" for number in range(1, len(taken) + 2))
    return next(id for id in numbered if id not in taken)


def _local(name: str, id: str) -> ChosenModel:
    # Absolute, for runs from other directories; links stay, by which the hub's cache is one.
    directory = Path(os.path.normpath(Path(name).expanduser().absolute()))
    where = f"--model {name}"
    model_files(directory, where)
    tensors = check_directory(directory, where)
    return ChosenModel(id, {"kind": "local", "path": str(directory)}, _facts(directory, tensors), "")


def _of_hub(name: str, id: str) -> ChosenModel:
    address = name.removeprefix("https://huggingface.co/")
    repo, _, revision = address.partition("@")
    # As other programs write a revision, and as a browser shows it.
    if found := re.fullmatch(rf"({_HUB_NAME.pattern})(?::|/tree/|/commit/)([\w.-]+)", repo):
        repo, revision = found.groups()
    if not _HUB_NAME.fullmatch(repo):
        raise UserError(
            f"--model {shortened(name)} is no directory, and no name on the hub: write the path of a model, "
            "owner/name, or owner/name@COMMIT."
        )
    if revision and not _COMMIT.fullmatch(revision):
        raise UserError(
            f"--model {shortened(name)}: {revision[:60]!r} is no commit: write the 40 hexadecimal digits that "
            f"https://huggingface.co/{repo}/commits/main shows."
        )
    pin = "as given"
    if not revision:
        revision, pin = _pinned(repo)
    return ChosenModel(
        id, {"kind": "hub", "repo": repo, "revision": revision}, _facts_of_hub(repo, revision, name), pin
    )


def _pinned(repo: str) -> tuple[str, str]:
    """The commit of a repository, and where it is from: the hub, or a shipped study where the hub is not there."""
    try:
        return commit_of("model", repo), "the hub's of today"
    except UserError as error:
        shipped = _shipped_commits().get(repo)
        if shipped is not None:
            return shipped, "that of config/paper.yaml, for the hub could not be asked"
        raise UserError(
            f"--model {repo}: no directory, and the hub does not say its commit ({str(error).rstrip('.')}): "
            f"write it yourself, --model {repo}@COMMIT, from https://huggingface.co/{repo}/commits/main."
        ) from None


def _shipped_commits() -> dict[str, str]:
    models = read_study(SHIPPED / "paper.yaml")["models"]
    sources = [model["source"] for model in models.values() if model["source"]["kind"] == "hub"]
    return {source["repo"]: source["revision"] for source in sources}


def _facts_of_hub(repo: str, revision: str, name: str) -> Facts | None:
    """What the small files of a repository say; None where the hub does not give them out here."""
    repository = Repository("model", repo, revision)
    # What the cache has of it may be a part.
    if constants.is_offline_mode():
        return None
    try:
        repository.files()
    except UserError:
        return None
    with tempfile.TemporaryDirectory(prefix="effllm-init-") as folder:
        directory = Path(folder, "model")
        files = needed_files(repository, directory, f"--model {name}")
        if not (directory / TOKENIZER_CONFIG).is_file():
            raise UserError(f"--model {name}: the repository has no {TOKENIZER_CONFIG}: take one with a tokenizer.")
        # Where a plan finds the model's shape.
        repository.fetch_into_cache(next(file for file in files if file.path == CONFIG))
        weights_b = sum(file.size for file in files if file.path.endswith(".safetensors"))
        return _facts(directory, {}, f"{weights_b / 1e9:,.3g} GB of weights")


def _facts(directory: Path, tensors: Mapping[str, TensorHeader], size: str = "") -> Facts:
    where = str(directory)
    config = read_object(directory / CONFIG, where)
    text = config.get("text_config")
    text = {**config, **text} if isinstance(text, dict) else config
    words = [str(config["model_type"])]
    if tensors:
        parameters = sum(tensor.elements for tensor in tensors.values())
        dtype, _ = Counter(tensor.dtype for tensor in tensors.values()).most_common(1)[0]
        is_tied = not any(tensor.endswith(_HEADS) for tensor in tensors)
        words += [
            f"{parameters:,} parameters in {_DTYPES.get(dtype, dtype)}",
            "tied head" if is_tied else "untied head",
        ]
    words += [size] if size else []
    tokenizer = read_object(directory / TOKENIZER_CONFIG, where)
    templates = [directory / "chat_template.jinja", directory / "chat_template.json"]
    has_template = bool(tokenizer.get("chat_template")) or any(path.is_file() for path in templates)
    return Facts(text, ", ".join([*words, "a chat template" if has_template else "no chat template"]), has_template)
