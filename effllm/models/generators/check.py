"""What a directory must hold to be a pipeline of one of the families; nothing here imports torch."""

from pathlib import Path

from effllm.errors import UserError
from effllm.models.checkpoint.files import CONFIG, read_object
from effllm.models.generators import FAMILIES
from effllm.models.generators.family import Family

INDEX = "model_index.json"
# Further forms of weights that are in the same folders.
_OTHER_FORMS = (".fp16.", ".bin", ".pt", ".msgpack", ".onnx", ".h5")


def family_of(directory: Path, where: str) -> Family:
    """The family of the pipeline in a directory; `UserError`, beginning with `where`, for what is none."""
    if not (directory / INDEX).is_file():
        raise UserError(
            f"{where}: {str(directory)!r} has no {INDEX}; name the directory that diffusers saved a pipeline in."
        )
    found = str(read_object(directory / INDEX, where).get("_class_name"))
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
    return family


def is_needed(path: str) -> bool:
    """Whether a file of a pipeline's repository, by its path, belongs to what is trained or encodes for it."""
    folder, _, name = path.rpartition("/")
    if path == INDEX:
        return True
    parts = {part for family in FAMILIES.values() for part in family.parts}
    return folder in parts and not any(form in name for form in _OTHER_FORMS)
