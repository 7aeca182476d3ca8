"""Ids of tokens that a model's configurations name, against the rows of its input table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effllm.errors import UserError
from effllm.models.checkpoint.files import CONFIG, read_object

GENERATION_CONFIG = "generation_config.json"
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_files_ids(directory: Path, config: Mapping[str, Any], where: str) -> None:
    """`UserError` for an id in config.json or generation_config.json that is no number, or beyond `vocab_size`."""
    text = config.get("text_config")
    parts = [part for part in (text, config) if isinstance(part, Mapping)]
    rows = next((part["vocab_size"] for part in parts if isinstance(part.get("vocab_size"), int)), None)
    for part in parts:
        check_ids(part, rows, f"{where}: {CONFIG}")
    if (directory / GENERATION_CONFIG).exists():
        check_ids(read_object(directory / GENERATION_CONFIG, where), rows, f"{where}: {GENERATION_CONFIG}")


def check_ids(settings: Mapping[str, Any], rows: int | None, where: str) -> None:
    """`UserError` unless each of `TOKEN_IDS` is null, or a row of the input table, or a list of such."""
    for key in TOKEN_IDS:
        value = settings.get(key)
        for id in value if isinstance(value, list) else [value]:
            if id is None:
                continue
            is_id = type(id) is int and id >= 0
            if not is_id or (rows is not None and id >= rows):
                known = f"none of the {rows} rows of the embeddings" if rows is not None else "no id of a token"
                raise UserError(f"{where}: {key} {str(id)[:20]!r} is {known}; correct it, or set it to null.")
