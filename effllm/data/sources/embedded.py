"""Documents that every Python installation carries: its language reference and its docstrings.

The text differs between Python versions, and in little between installations that leave modules out; the corpus's
manifest holds the digests of what was found.
"""

import ast
import inspect
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from pydoc_data.topics import topics

import pyarrow as pa
from tokenizers.pre_tokenizers import ByteLevel

from effllm.data.schema import SCHEMA
from effllm.data.standard_library import Definition, definitions, public_modules

BATCH_DOCUMENTS = 500


class EmbeddedSource:
    """The topics of `pydoc_data` and the docstrings of the standard library's public modules, classes and functions.

    Source files are parsed, never imported. Ids are `topic/<name>` and `docstring/<qualified name>`, a name defined
    again getting `#2`; `dump` is `python-<version>`, `file_path` is relative to the library. `token_count` is the
    number of pre-tokens that the GPT-2 splitting pattern makes of the text, known before any tokenizer is trained.
    `language` is "en"; `url`, `language_score`, `score` and `int_score` are null, because nobody measured them.
    """

    label = "the text of the Python installation"
    total: int | None = None
    scored = False
    is_seekable = False

    def __init__(self, minimum_characters: int):
        self._minimum_characters = minimum_characters

    def units(self) -> list["EmbeddedSource"]:
        """Itself: it is small."""
        return [self]

    def fetch(self) -> None:
        """It is there."""

    def release(self) -> None:
        """It is Python's."""

    def batches(
        self, names: Sequence[str] = SCHEMA.names, start: int = 0, stop: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the documents of at least `minimum_characters`: topics, then modules by name, in file order."""
        count_tokens = ByteLevel(add_prefix_space=False, use_regex=True).pre_tokenize_str
        dump = f"python-{platform.python_version()}"
        rows = []
        for id, path, text in self._documents():
            rows.append(
                {
                    "text": text,
                    "id": id,
                    "dump": dump,
                    "file_path": path,
                    "language": "en",
                    "token_count": len(count_tokens(text)),
                }
            )
            if len(rows) == BATCH_DOCUMENTS:
                yield pa.RecordBatch.from_pylist(rows, schema=SCHEMA).select(list(names))
                rows = []
        if rows:
            yield pa.RecordBatch.from_pylist(rows, schema=SCHEMA).select(list(names))

    def _documents(self) -> Iterator[tuple[str, str, str]]:
        uses: Counter[str] = Counter()
        for id, path, raw in _raw_documents():
            text = inspect.cleandoc(raw).strip()
            if len(text) >= self._minimum_characters:
                uses[id] += 1
                yield (id if uses[id] == 1 else f"{id}#{uses[id]}"), path, text


def _raw_documents() -> Iterator[tuple[str, str, str]]:
    for name in sorted(topics):
        yield f"topic/{name}", "pydoc_data/topics.py", topics[name]
    for module, path, tree in public_modules():
        for name, docstring in _docstrings(tree, module):
            yield f"docstring/{name}", path, docstring


def _docstrings(node: Definition, name: str) -> Iterator[tuple[str, str]]:
    """Qualified names and docstrings of a definition and of the public ones inside it, in file order."""
    docstring = ast.get_docstring(node, clean=False)
    if docstring:
        yield name, docstring
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        for child in definitions(node):
            yield from _docstrings(child, f"{name}.{child.name}")
