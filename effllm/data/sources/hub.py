"""Datasets streamed from the hub, and documents out of one such as FineWeb-Edu."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from effllm.data.schema import SCHEMA, conform
from effllm.errors import UserError

BATCH_DOCUMENTS = 1000


class HubDataset:
    """A dataset at a pinned revision, never downloaded whole and never running code from its repository."""

    def __init__(self, repo: str, name: str | None, split: str, revision: str):
        self.label = f"{repo}{f' ({name})' if name else ''} at {revision[:8]}"
        self._arguments: dict[str, Any] = {
            "path": repo,
            "name": name,
            "split": split,
            "revision": revision,
            "streaming": True,
        }

    def batches(self, needed_by: str, remedy: str) -> Iterator[pa.RecordBatch]:
        """Yield the dataset in its own order and columns.

        `UserError` without network, repository, configuration or split, which says what it was `needed_by` and, for
        a dataset that is there but not as configured, the `remedy`.
        """
        # Two seconds that the other sources need not pay.
        import datasets

        # The error of the hub's HTTP client, whichever library that is in this release.
        from huggingface_hub.errors import HTTPError

        try:
            stream = datasets.load_dataset(**self._arguments).with_format("arrow")
            for table in stream.iter(batch_size=BATCH_DOCUMENTS):
                yield from table.combine_chunks().to_batches()
        except (OSError, HTTPError) as error:
            raise UserError(
                f"{needed_by} needs {self.label} from the hub, which cannot be read ({_first_line(error)}); check the "
                "network, the repository and the revision, or use local files (source.kind: files)."
            ) from None
        except ValueError as error:
            raise UserError(f"{self.label} cannot be read as configured ({_first_line(error)}); {remedy}.") from None


class HubSource:
    """Documents of a dataset on the hub."""

    total = None
    scored = True

    def __init__(self, repo: str, name: str | None, split: str, revision: str):
        self._dataset = HubDataset(repo, name, split, revision)
        self.label = self._dataset.label

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the dataset in its own order; `UserError` without network, repository, configuration or split."""
        columns = ", ".join(SCHEMA.names)
        remedy = f"correct source.name or source.split (its columns must be {columns})"
        for batch in self._dataset.batches("the corpus", remedy):
            yield conform(batch, self.label)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
