"""What a directory must hold to be a pipeline of one of the families; nothing here imports torch."""

from pathlib import Path

from effllm.errors import UserError
from effllm.models.checkpoint.files import CONFIG, read_object, weight_map
from effllm.models.generators import FAMILIES
from effllm.models.generators.family import Family

INDEX = "model_index.json"
# Further forms of weights that are in the same folders.
_OTHER_FORMS = (".fp16.", ".bin", ".pt", ".msgpack", ".onnx", ".h5")
# Folders of a pipeline that hold none.
_WITHOUT_WEIGHTS = ("tokenizer", "scheduler")


def family_of(directory: Path, where: str) -> Family:
    """The family of the pipeline in a directory; `UserError`, beginning with `where`, for what is none."""
    if not (directory / INDEX).is_file():
        raise UserError(
            f"{where}: {str(directory)!r} has no {INDEX}; name the directory that diffusers saved a pipeline in."
        )
    index = read_object(directory / INDEX, where)
    found = str(index.get("_class_name"))
    for family in FAMILIES.values():
        if family.pipeline == found:
            break
    else:
        known = " or ".join(family.pipeline for family in FAMILIES.values())
        raise UserError(f"{where}: {INDEX} is that of a {found[:60]!r}, which is not trained here: take a {known}.")
    for part in family.parts:
        if not (directory / part).is_dir():
            raise UserError(f"{where}: the pipeline lacks its folder {part}; take a whole one.")
    for part, kind in (("transformer", family.transformer), ("vae", family.autoencoder)):
        stated = str(read_object(directory / part / CONFIG, where).get("_class_name"))
        if stated != kind:
            raise UserError(f"{where}: {part}/{CONFIG} is that of a {stated[:60]!r} and not of a {kind}; take another.")
    for part in family.parts:
        if has_weights(part):
            _require_weights(directory, part, where)
    # diffusers writes [null, null] for a part that a pipeline does without.
    if any(index.get("transformer_2") or []):
        raise UserError(
            f"{where}: {INDEX} names a transformer_2, which is not trained here; take a pipeline of one transformer."
        )
    _require_joints(family, directory, where)
    return family


def _require_joints(family: Family, directory: Path, where: str) -> None:
    """`UserError` for parts of several pipelines, by what their configurations say."""

    def width(key: str) -> int | None:
        part, _, name = key.partition(".")
        path = directory / part / CONFIG
        value = read_object(path, where).get(name) if path.is_file() else None
        return value if isinstance(value, int) else None

    for key, other in family.joints:
        wanted, found = width(key), [width(each) for each in other.split(" + ")]
        if wanted is not None and None not in found and wanted != sum(filter(None, found)):
            raise UserError(
                f"{where}: {key} is {wanted} and {other} {sum(filter(None, found))}; take all parts of one pipeline."
            )


def _require_weights(directory: Path, part: str, where: str) -> None:
    names = {path.name for path in (directory / part).glob("*.safetensors") if is_needed(f"{part}/{path.name}")}
    if not names:
        raise UserError(f"{where}: {part} has no *.safetensors; save the pipeline with save_pretrained.")
    indices = (path for path in (directory / part).glob("*.index.json") if is_needed(f"{part}/{path.name}"))
    for index in sorted(indices):
        for shard in sorted(set(weight_map(index, f"{where}: {part}").values())):
            if shard not in names:
                raise UserError(
                    f"{where}: {part}/{index.name} names {shard[:80]!r}, which is missing; add the file, or save the "
                    "pipeline anew."
                )


def has_weights(part: str) -> bool:
    """Whether a folder of a pipeline holds weights."""
    return not part.startswith(_WITHOUT_WEIGHTS)


def is_needed(path: str) -> bool:
    """Whether a file of a pipeline's repository, by its path, belongs to what is trained or encodes for it."""
    folder, _, name = path.rpartition("/")
    if path == INDEX:
        return True
    parts = {part for family in FAMILIES.values() for part in family.parts}
    return folder in parts and not any(form in name for form in _OTHER_FORMS)
