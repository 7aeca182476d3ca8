"""Datasets of the hub: their files fetched and checked by `effllm.hub.repository`, their form read by `datasets`.

`datasets` finds configurations, splits and formats from the names of a repository's files and from its README. It gets
both in a directory of its own, where the data files are empty until they are needed, and never speaks to the hub:
its own requests end at a reset, do not notice altered bytes, and fall back on any cached version of a dataset in place
of the pinned one.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from effllm.errors import UserError
from effllm.hub.parquet import parquet_rows
from effllm.hub.repository import HubFile, Repository

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder

BATCH_ROWS = 1000
KEPT_BYTES = 64 << 30
"""Splits up to this size stay until the stage has ended, so that a killed run finds them again."""
# What `datasets` reads before it opens any data file.
_FORM = ("README.md", ".huggingface.yaml", "dataset_infos.json")


class HubDataset:
    """A dataset at a pinned commit, one configuration of it, without running code from its repository.

    Its files lie below `directory`, which should survive a killed run: what it holds is not fetched again. `options`
    are those of a task of lm-evaluation-harness (`dataset_kwargs`), such as data_dir.
    """

    def __init__(self, repo: str, name: str | None, revision: str, directory: Path, **options: Any):
        self.label = f"{repo}{f' ({name})' if name else ''} at {revision[:8]}"
        self._repo, self._name = repo, name
        self._options = options
        self._cache = directory / "cache"
        # Named as the repository is: a script in it would have this name too.
        self._root = directory / "files" / (repo.rpartition("/")[2] or "dataset")
        self.repository = Repository("dataset", repo, revision)
        self._files: dict[str, HubFile] = {}

    def batches(self, split: str, rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a split (or of several, `a+b`) in the dataset's own order and columns, `rows` at a time.

        `UserError` for what the hub does not give, and for what cannot be read as configured.
        """
        files = self.data_files(split)
        keeps = self.keeps([file for _, file in files])
        for part, file in files:
            self.fetch([file])
            yield from self.read(part, file, rows)
            if not keeps:
                self.empty(file)

    def data_files(self, split: str) -> list[tuple[str, str]]:
        """Split and path of each data file of a split (or of several, `a+b`), in order; errors as for `batches`."""
        return [(part, file) for part in split.split("+") for file in self._data_files(self._builder(), part)]

    def keeps(self, files: Iterable[str]) -> bool:
        """Whether these files are few enough bytes to stay until the stage has ended."""
        return sum(self._files[file].size for file in files) <= KEPT_BYTES

    def parquet(self, file: str, names: Sequence[str], start: int, stop: int | None) -> Iterator[pa.RecordBatch]:
        """Yield the columns `names` of the rows [start, stop) of a data file in parquet that was fetched, as it is."""
        with self._reading(file), pq.ParquetFile(self._root / file) as parquet:
            yield from parquet_rows(parquet, names, start, stop, BATCH_ROWS)

    def parquet_schema(self, file: str) -> pa.Schema:
        """Columns of a data file in parquet that was fetched."""
        with self._reading(file):
            return pq.read_schema(self._root / file)

    def class_names(self, column: str) -> list[str]:
        """The names that the dataset's description has for the numbers in a column; none where it has none."""
        feature = (self._builder().info.features or {}).get(column)
        return list(getattr(feature, "names", None) or [])

    def read(self, split: str, file: str, rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a data file that was fetched, in the columns that the dataset says it has."""
        with self._reading(file):
            builder = self._builder()
            self._restrict(builder, split, [file])
            stream = builder.as_streaming_dataset(split).with_format("arrow")
            for table in stream.iter(batch_size=rows):
                yield from table.combine_chunks().to_batches()

    def empty(self, file: str) -> None:
        """Give back the room of a data file."""
        (self._root / file).write_bytes(b"")

    def files(self, splits: Iterable[str]) -> list[HubFile]:
        """What reading these splits takes: their data files in order, and the files that say what those are."""
        found: dict[str, None] = {}
        for split in splits:
            for part in split.split("+"):
                found |= dict.fromkeys(self._data_files(self._builder(), part))
        return [self._files[path] for path in (*(path for path in _FORM if path in self._files), *found)]

    def load(self, split: str) -> "Dataset":
        """A split as a whole, memory-mapped below the directory; errors as those of `batches`."""
        # Two splits of one configuration would share a folder, which the first would fill for both.
        builder = self._builder(split)
        files = self._data_files(builder, split)
        self.fetch(files)
        self._restrict(builder, split, files)
        with self._reading(", ".join(files[:3])):
            # The README may promise other splits, which are not asked for here.
            builder.download_and_prepare(verification_mode="no_checks")
            return builder.as_dataset(split)

    def _builder(self, folder: str = "streams") -> "DatasetBuilder":
        """What `datasets` makes of the repository's form, with a folder of its own; opens no data file."""
        import datasets

        if not self._files:
            self._lay_out()
        with self._reading("README.md"):
            return datasets.load_dataset_builder(
                str(self._root), self._name, cache_dir=str(self._cache / folder), **self._options
            )

    def _lay_out(self) -> None:
        """Every file of the commit under its name, empty save for those that say what the others are."""
        files = {file.path: file for file in self.repository.files()}
        if not files:
            raise UserError(f"{self.label} has no files on the hub: name another dataset.")
        for path in files:
            target = self._root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        self.repository.fetch([files[path] for path in _FORM if path in files], self._root)
        self._files = files

    def _data_files(self, builder: "DatasetBuilder", split: str) -> list[str]:
        """Paths in the repository of a split's files, in their order."""
        found = builder.config.data_files or {}
        if split not in found:
            names = ", ".join(repr(str(name)) for name in found)
            raise UserError(f"{self.label} has no split {split!r}: its splits are {names or 'none'}.")
        root = self._root.resolve()
        paths = [Path(path).resolve() for path in found[split]]
        outside = [path for path in paths if not path.is_relative_to(root)]
        if outside:
            raise UserError(f"{self.label} names a data file outside of it, {outside[0]}: use another dataset.")
        return [path.relative_to(root).as_posix() for path in paths]

    def fetch(self, paths: Iterable[str]) -> None:
        """Bring files of the repository to this machine; errors as those of `Repository.fetch`."""
        self.repository.fetch([self._files[path] for path in paths], self._root)

    def fetch_into_cache(self, path: str) -> None:
        """Bring a file into the hub's cache, and link it from the directory; errors as those of `Repository.fetch`."""
        file = self._files[path]
        (self._root / path).unlink()
        (self._root / path).symlink_to(self.repository.fetch_into_cache(file))

    def _restrict(self, builder: "DatasetBuilder", split: str, paths: list[str]) -> None:
        """Let `builder` open these files of the split and no others."""
        from datasets.data_files import DataFilesDict, DataFilesList

        files = [str(self._root / path) for path in paths]
        builder.config.data_files = DataFilesDict({split: DataFilesList(files, [(path,) for path in paths])})

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Errors of the content become a `UserError`: the bytes are the hub's, so another try would not mend them."""
        import datasets

        try:
            yield
        # Their own errors derive from OSError and ValueError in part; the system's have a number.
        except (datasets.exceptions.DatasetsError, ValueError, RuntimeError, OSError, pa.ArrowException) as error:
            cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else error
            if isinstance(cause, OSError) and cause.errno:
                raise cause from None
            text = str(cause or error).replace(str(self._root), self._repo)
            reason = (text.splitlines() or [type(error).__name__])[0].rstrip(".")
            if "scripts are no longer supported" in reason:
                raise UserError(
                    f"{self.label} is a script, which is not run: name a dataset that is made of data files."
                ) from None
            raise UserError(
                f"{self.label} cannot be read as configured ({what}: {reason}); name another configuration, or "
                "another dataset."
            ) from None
