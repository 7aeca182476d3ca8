"""Documents out of a dataset of the hub such as FineWeb-Edu."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from effllm.data.schema import check_schema, conform
from effllm.hub.dataset import HubDataset
from effllm.hub.repository import HubFile, Repository


class HubSource:
    """Documents of a dataset on the hub, whose files pass through `directory`."""

    total: int | None = None
    scored = True

    def __init__(self, repo: str, name: str | None, split: str, revision: str, directory: Path):
        self._dataset = HubDataset(repo, name, revision, directory)
        self._split = split
        self.label = self._dataset.label

    def units(self) -> list["HubUnit"]:
        """The split's files in the dataset's order; `UserError` without network, repository, configuration or split."""
        files = self._dataset.data_files(self._split)
        keeps = self._dataset.keeps([file for _, file in files])
        return [HubUnit(self._dataset, split, file, keeps) for split, file in files]


class CachedHubSource(HubSource):
    """The same, whose files are fetched into the hub's cache and read there."""

    def units(self) -> list["HubUnit"]:
        # Named before any of them is a link to the cache.
        parts = self._dataset.data_files(self._split)
        self._names = [file for _, file in parts]
        self._files = self._dataset.files([self._split])
        return [_CachedUnit(self._dataset, part, file, keeps=True) for part, file in parts]

    def taken(self, units: int) -> tuple[Repository, list[HubFile]]:
        """The repository, and of its files those of the first so many units and those that say what they are."""
        left = set(self._names[units:])
        return self._dataset.repository, [file for file in self._files if file.path not in left]


class HubUnit:
    """One data file of a dataset; read again only if it is parquet and the whole split stays on the disk."""

    def __init__(self, dataset: HubDataset, split: str, file: str, keeps: bool):
        self.label = dataset.label
        self.is_seekable = keeps and file.endswith(".parquet")
        self._dataset, self._split, self._file, self._keeps = dataset, split, file, keeps

    def fetch(self) -> None:
        """Download the file, or what is missing of it."""
        self._dataset.fetch([self._file])

    def batches(self, names: Sequence[str], start: int = 0, stop: int | None = None) -> Iterator[pa.RecordBatch]:
        """Yield its documents; `UserError` for a file that cannot be read as configured."""
        if self._file.endswith(".parquet"):
            check_schema(self._dataset.parquet_schema(self._file), self.label)
            rows = self._dataset.parquet(self._file, names, start, stop)
        else:
            rows = _checked(self._dataset.read(self._split, self._file), self.label)
        for batch in rows:
            yield conform(batch, self.label, names)

    def release(self) -> None:
        """Empty the file of a split that is too large to stay."""
        if not self._keeps:
            self._dataset.empty(self._file)


class _CachedUnit(HubUnit):
    """One data file, of which the directory of the dataset has a link to the cache alone."""

    def fetch(self) -> None:
        self._dataset.fetch_into_cache(self._file)


def _checked(batches: Iterator[pa.RecordBatch], where: str) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        check_schema(batch.schema, where)
        yield batch
