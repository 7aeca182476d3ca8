"""The ten columns of FineWeb-Edu, in which every source delivers its documents, and the check of what arrives."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from effllm.errors import UserError

SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("id", pa.string()),
        ("dump", pa.string()),
        ("url", pa.string()),
        ("file_path", pa.string()),
        ("language", pa.string()),
        ("language_score", pa.float64()),
        ("token_count", pa.int64()),
        ("score", pa.float64()),
        ("int_score", pa.int64()),
    ]
)
REQUIRED = ("text", "id", "token_count")
"""Columns without nulls: a document is its text, is drawn by its id, and is counted by its tokens."""


def check_schema(schema: pa.Schema, where: str) -> None:
    """Raise `UserError` naming the columns that are missing, or the first one whose type cannot be FineWeb-Edu's."""
    missing = [name for name in SCHEMA.names if name not in schema.names]
    if missing:
        raise UserError(
            f"{where}: no column {', '.join(missing)}; add it (null where it was not measured, save "
            f"{', '.join(REQUIRED)}) or rename the file's own."
        )
    twice = [name for name in SCHEMA.names if schema.names.count(name) > 1]
    if twice:
        raise UserError(f"{where}: column {twice[0]} occurs twice; rename one.")
    for wanted in SCHEMA:
        found = schema.field(wanted.name).type
        if not _fits(found, wanted.type):
            raise UserError(
                f"{where}: column {wanted.name} has type {found} where {wanted.type} is needed; convert the column."
            )


def conform(batch: pa.RecordBatch, where: str, names: Sequence[str] = SCHEMA.names) -> pa.RecordBatch:
    """The columns `names` of the batch as `SCHEMA` has them; `UserError` that begins with `where` if they cannot be."""
    wanted = SCHEMA if len(names) == len(SCHEMA) else pa.schema([SCHEMA.field(name) for name in names])
    try:
        if batch.schema != wanted:
            columns = [batch.column(field.name).cast(field.type) for field in wanted]
            batch = pa.RecordBatch.from_arrays(columns, schema=wanted)
        # Parquet readers trust the file; this finds damaged offsets and text that is not UTF-8.
        batch.validate(full=True)
    except pa.ArrowException as error:
        raise UserError(f"{where}: {error}; the data is damaged: fetch or write it again.") from None
    for name in REQUIRED:
        if name in names and batch.column(name).null_count:
            raise UserError(f"{where}: column {name} holds nulls; remove those documents or fill them in.")
    counts = pc.min(batch.column("token_count")).as_py() if "token_count" in names else None
    if counts is not None and counts < 0:
        raise UserError(f"{where}: column token_count holds {counts}; counts of tokens are not negative: correct it.")
    return batch


def _fits(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether `found` is `wanted` in another width or encoding; text is never read as a number."""
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_null(found):
        return True
    if pa.types.is_string(wanted):
        return pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)
    if pa.types.is_integer(wanted):
        return pa.types.is_integer(found)
    return pa.types.is_floating(found) or pa.types.is_integer(found)
