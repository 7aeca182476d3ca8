"""Images out of a dataset of the hub, a file at a time: bytes in one column, labels in another."""

import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from effllm.data.images.settings import HubImageSource
from effllm.errors import UserError
from effllm.hub.dataset import HubDataset

# Rows in memory at once: images as files, of up to some megabytes each.
_BATCH_ROWS = 64


class HubImages:
    """The rows of a split in its order. Names of classes are the dataset's, or numbers, or texts as they come."""

    def __init__(self, source: HubImageSource, directory: Path):
        self._dataset = HubDataset(source.repo, source.name, source.revision, directory)
        self._source = source
        self.label = self._dataset.label
        self.classes: list[str] = []

    def pictures(self) -> Iterator[tuple[str, int, io.BytesIO]]:
        """The file of each image, which may be damaged; -1 is the label of one without."""
        columns = self._source.columns
        self.classes = self._dataset.class_names(columns.label) if columns.label is not None else []
        numbers: dict[str, int] = {}
        row = 0
        for batch in self._dataset.batches(self._source.split, _BATCH_ROWS):
            self._require(batch.schema)
            labels = [0] * batch.num_rows if columns.label is None else batch.column(columns.label).to_pylist()
            for image, label in zip(batch.column(columns.image), labels, strict=True):
                content = image.as_py()
                name, data = f"row {row}", content
                if isinstance(content, dict):
                    data = content["bytes"]
                    name += f" ({content['path']})" if content.get("path") else ""
                if isinstance(label, str):
                    label = numbers.setdefault(label, len(numbers))
                    self.classes = list(numbers)
                elif label is not None and columns.label is not None:
                    self.classes += [str(number) for number in range(len(self.classes), label + 1)]
                yield name, -1 if label is None else label, io.BytesIO(data or b"")
                row += 1

    def _require(self, schema: pa.Schema) -> None:
        """`UserError` for columns that are not there, or of another type."""
        columns, kinds = self._source.columns, pa.types
        for name in (columns.image, *([] if columns.label is None else [columns.label])):
            if name not in schema.names:
                found = ", ".join(schema.names)
                raise UserError(f"{self.label}: no column {name!r}; its columns are {found}: name one in columns.")
        image = schema.field(columns.image).type
        if kinds.is_struct(image) and any(field.name == "bytes" for field in image):
            image = image.field("bytes").type
        if not (kinds.is_binary(image) or kinds.is_large_binary(image)):
            raise UserError(f"{self.label}: column {columns.image!r} has type {image}, which holds no image files.")
        if columns.label is None:
            return
        label = schema.field(columns.label).type
        if not (kinds.is_integer(label) or kinds.is_string(label) or kinds.is_large_string(label)):
            raise UserError(f"{self.label}: column {columns.label!r} has type {label}: labels are numbers or texts.")
