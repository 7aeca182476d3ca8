"""Documents streamed from a dataset on the hub, such as FineWeb-Edu."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from effllm.data.schema import SCHEMA, conform
from effllm.errors import UserError

BATCH_DOCUMENTS = 1000


class HubSource:
    """A dataset at a pinned revision, never downloaded whole and never running code from its repository."""

    total = None
    scored = True

    def __init__(self, repo: str, name: str | None, split: str, revision: str):
        self.label = f"{repo}{f' ({name})' if name else ''} at {revision[:8]}"
        self._arguments: dict[str, Any] = {
            "path": repo,
            "name": name,
            "split": split,
            "revision": revision,
            "streaming": True,
        }

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the dataset in its own order; `UserError` without network, repository, configuration or split."""
        # Two seconds that the other sources need not pay.
        import datasets

        # The error of the hub's HTTP client, whichever library that is in this release.
        from huggingface_hub.errors import HTTPError

        try:
            stream = datasets.load_dataset(**self._arguments).with_format("arrow")
            for table in stream.iter(batch_size=BATCH_DOCUMENTS):
                for batch in table.combine_chunks().to_batches():
                    yield conform(batch, self.label)
        except (OSError, HTTPError) as error:
            raise UserError(
                f"the corpus needs {self.label} from the hub, which cannot be read ({_first_line(error)}); check the "
                "network, the repository and the revision, or use local files (source.kind: files)."
            ) from None
        except ValueError as error:
            raise UserError(
                f"{self.label} cannot be read as configured ({_first_line(error)}); correct source.name or "
                f"source.split (its columns must be {', '.join(SCHEMA.names)})."
            ) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
