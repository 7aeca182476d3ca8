"""Documents out of a dataset of the hub such as FineWeb-Edu."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from effllm.data.schema import conform
from effllm.hub.dataset import HubDataset


class HubSource:
    """Documents of a dataset on the hub, whose files pass through `directory`."""

    total = None
    scored = True

    def __init__(self, repo: str, name: str | None, split: str, revision: str, directory: Path):
        self._dataset = HubDataset(repo, name, revision, directory)
        self._split = split
        self.label = self._dataset.label

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the dataset in its own order; `UserError` without network, repository, configuration or split."""
        for batch in self._dataset.batches(self._split):
            yield conform(batch, self.label)
