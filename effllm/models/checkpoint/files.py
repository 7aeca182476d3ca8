"""The files of a model directory: plain ones, of the directory itself, and of those the ones that are loaded."""

import json
import stat
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from effllm.errors import UserError

MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
_SUFFIX = ".safetensors"
_INDEX_SUFFIX = ".safetensors.index.json"
_GGUF = ".gguf"
_MERGE = "merge the adapter into its base model"
_LONGEST_NAME = 80


def model_files(directory: Path, where: str) -> list[Path]:
    """The files of a model directory that the study takes, sorted; `where` begins the sentence of a refusal.

    Links are followed inside the directory only. A snapshot of the hub's cache consists of links to the `blobs` beside
    `snapshots`, which are followed too: that is where the cache keeps the files of that repository, and of no other.

    `UserError` where a name is no plain file, where a link leads elsewhere, and where what every model has is missing.
    """
    if not directory.is_dir():
        what = "a GGUF file, which nothing here reads" if directory.suffix == _GGUF else "not a directory"
        raise UserError(f"{where}: {str(directory)!r} is {what}; name a directory that save_pretrained wrote.")
    try:
        found = sorted({path for pattern in MODEL_FILES for path in directory.glob(pattern)})
    except OSError as error:
        raise UserError(
            f"{where}: {str(directory)!r} cannot be read ({error.strerror}); give this user access."
        ) from None
    for path in found:
        _require_plain(path, directory, where)
    names = {path.name for path in found}
    for needed in (CONFIG, TOKENIZER_CONFIG):
        if needed not in names:
            if needed == CONFIG and ADAPTER in names:
                raise UserError(f"{where}: {str(directory)!r} is an adapter alone; {_MERGE}.")
            if needed == CONFIG and any(directory.glob(f"*{_GGUF}")):
                raise UserError(
                    f"{where}: {str(directory)!r} holds GGUF files, which nothing here reads; take the model's "
                    "safetensors."
                )
            raise UserError(
                f"{where}: {str(directory)!r} has no {needed}; name a directory that save_pretrained wrote, with the "
                "model's tokenizer."
            )
    if not any(name.endswith(_SUFFIX) for name in names):
        remedy = _MERGE if ADAPTER in names else "save the model with safetensors"
        raise UserError(f"{where}: {str(directory)!r} holds no *.safetensors; {remedy}.")
    return found


def weight_files(directory: Path, names: Collection[str], where: str) -> Mapping[str, list[str] | None]:
    """Files of weights by name, as Transformers loads them, each with the tensors that an index says it holds.

    `names` are the files of the model; the indices among them must be in `directory`, the weights not yet.
    `model.safetensors` goes before an index, and has none: then the list is None. `UserError` where there is neither,
    where an index cannot be read, and where one names what is no file of this directory.
    """
    indices = sorted(name for name in names if name.endswith(_INDEX_SUFFIX))
    # Those that are not used as well: nothing that is published may lead out of its directory.
    maps = {name: weight_map(directory / name, where) for name in indices}
    if WEIGHTS in names:
        return {WEIGHTS: None}
    if INDEX not in maps:
        raise UserError(
            f"{where}: there is neither {WEIGHTS} nor {INDEX}, by which Transformers finds the weights; save the model "
            "with save_pretrained."
        )
    shards: dict[str, list[str]] = {}
    for tensor, shard in maps[INDEX].items():
        shards.setdefault(shard, []).append(tensor)
    for shard in shards:
        if shard not in names:
            raise UserError(
                f"{where}: {INDEX} names {_short(shard)}, which is missing; add the file, or save the model anew."
            )
    if not shards:
        raise UserError(f"{where}: {INDEX} names no file; save the model anew.")
    return dict(sorted(shards.items()))


def is_taken(name: str, weights: Mapping[str, list[str] | None]) -> bool:
    """Whether a file is part of the model: weights that are not loaded, such as a second format's, are not."""
    if name.endswith(_INDEX_SUFFIX):
        return name == INDEX and WEIGHTS not in weights
    return not name.endswith(_SUFFIX) or name in weights


def read_object(path: Path, where: str) -> dict[str, Any]:
    """A JSON file that holds an object; `UserError` where it holds anything else."""
    try:
        content = json.loads(path.read_bytes())
    except RecursionError:
        raise UserError(f"{where}: {path.name} is nested too deeply for JSON; fetch or save it again.") from None
    except ValueError as error:
        what = "empty" if path.stat().st_size == 0 else f"not JSON ({str(error)[:80]})"
        raise UserError(f"{where}: {path.name} is {what}; fetch or save it again.") from None
    except OSError as error:
        raise unreadable(where, path.name, error) from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: {path.name} holds no JSON object; fetch or save it again.")
    return content


def unreadable(where: str, name: str, error: OSError) -> UserError:
    """The sentence for a file that the system does not let this process read."""
    return UserError(f"{where}: {name!r} cannot be read ({error.strerror}); give this user access.")


def stray_names(directory: Path) -> list[str]:
    """Sentences on links below a directory of an artifact, and on names in its indices that lead out of it."""
    found = [
        f"{path} is a link; an artifact holds plain files" for path in sorted(directory.rglob("*")) if path.is_symlink()
    ]
    for path in sorted(directory.rglob(f"*{_INDEX_SUFFIX}")):
        if path.is_symlink() or not path.is_file():
            continue
        try:
            weight_map(path, str(path.parent))
        except UserError as error:
            found.append(str(error).rstrip("."))
    return found


def _require_plain(path: Path, directory: Path, where: str) -> None:
    try:
        target = path.resolve(strict=True)
        kind = target.stat().st_mode
    except (OSError, RuntimeError):
        raise UserError(f"{where}: {_short(path.name)} is a link that leads nowhere; replace it by the file.") from None
    if path.is_symlink():
        root = directory.resolve()
        stores = [root, *([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])]
        if not any(target.is_relative_to(store) for store in stores):
            raise UserError(
                f"{where}: {_short(path.name)} is a link out of the model's directory; replace it by the file, or "
                "delete it."
            )
    if not stat.S_ISREG(kind):
        what = "a directory" if stat.S_ISDIR(kind) else "no plain file"
        raise UserError(f"{where}: {_short(path.name)} is {what}; rename it, or delete it.")


def weight_map(path: Path, where: str) -> dict[str, str]:
    """By tensor, the file beside an index that has it; `UserError` where it names what is none."""
    files = read_object(path, where).get("weight_map")
    if not isinstance(files, dict):
        raise UserError(f"{where}: {path.name} has no weight_map; save the model anew.")
    for name in set(map(str, files.values())):
        is_plain = name == PurePosixPath(name).name and "\\" not in name and "\0" not in name
        if not is_plain or not name.endswith(_SUFFIX):
            raise UserError(
                f"{where}: {path.name} names {_short(name)}, which is no *.safetensors of its own directory; correct "
                "it, or save the model anew."
            )
    return {str(tensor): str(name) for tensor, name in files.items()}


def _short(name: str) -> str:
    return repr(name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}...")
