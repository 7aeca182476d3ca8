"""The text of the Python installation as a corpus."""

import ast
import collections
import inspect
import subprocess
import sys
import textwrap
from pydoc_data.topics import topics

import pytest
from corpus_documents import kept
from tokenizers.pre_tokenizers import ByteLevel

from effllm.data.schema import SCHEMA
from effllm.data.sources.embedded import EmbeddedSource, _docstrings
from effllm.errors import UserError


@pytest.fixture(scope="module")
def rows():
    batches = list(EmbeddedSource(200).batches())
    assert all(batch.schema == SCHEMA for batch in batches)
    return [row for batch in batches for row in batch.to_pylist()]


def test_topics_and_docstrings_are_documents_with_their_origin(rows):
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows)
    ordered_dict = found["docstring/argparse.ArgumentParser"]
    assert ordered_dict["text"].startswith("Object for parsing command line strings into Python objects.")
    assert ordered_dict["file_path"] == "argparse.py"
    namedtuple = found["docstring/collections.namedtuple"]
    assert namedtuple["text"] == inspect.getdoc(collections.namedtuple)
    assert namedtuple["file_path"] == "collections/__init__.py"
    assert found["topic/for"]["text"] == inspect.cleandoc(topics["for"]).strip()
    assert sum(len(row["text"].encode()) for row in rows) > 1_200_000


def test_what_was_not_measured_is_null_and_tokens_are_pre_tokens(rows):
    splitter = ByteLevel(add_prefix_space=False)
    version = "python-" + ".".join(map(str, sys.version_info[:3]))
    for row in rows[::50]:
        assert row["url"] is row["score"] is row["int_score"] is row["language_score"] is None
        assert (row["language"], row["dump"]) == ("en", version)
        assert row["token_count"] == len(splitter.pre_tokenize_str(row["text"]))


def test_only_public_names_of_the_library_itself_are_taken(rows):
    for row in rows:
        kind, name = row["id"].split("/", 1)
        if kind == "docstring":
            parts = name.partition("#")[0].split(".")
            assert parts[0] in sys.stdlib_module_names
            assert not any(part.startswith("_") or part in ("test", "tests", "idlelib") for part in parts)
            assert "site-packages" not in row["file_path"]


def test_shorter_documents_are_left_out(rows):
    assert min(len(row["text"]) for row in rows) >= 200
    long = {row["id"] for row in rows if len(row["text"]) >= 2000}
    found = {id for batch in EmbeddedSource(2000).batches() for id in batch.column("id").to_pylist()}
    assert {id.partition("#")[0] for id in found} == {id.partition("#")[0] for id in long}


def test_definitions_are_found_under_conditions_and_not_inside_functions_or_private_classes():
    source = '''
        """Module."""
        if flag:
            def first():
                """First."""
                def hidden():
                    """Hidden."""
        try:
            import fast
        except ImportError:
            class Second:
                """Second."""
                async def method(self):
                    """Method."""
                def _private(self):
                    """Private."""
        class _Private:
            """Private."""
            def method(self):
                """Method of a private class."""
    '''
    tree = ast.parse(textwrap.dedent(source))
    assert list(_docstrings(tree, "m")) == [
        ("m", "Module."),
        ("m.first", "First."),
        ("m.Second", "Second."),
        ("m.Second.method", "Method."),
    ]


def test_no_module_of_the_library_is_imported_for_its_docstrings():
    program = (
        "import sys; from effllm.data.sources.embedded import EmbeddedSource; before = set(sys.modules); "
        "list(EmbeddedSource(200).batches()); print(sorted(set(sys.modules) - before))"
    )
    finished = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    added = {name for name in ast.literal_eval(finished.stdout) if not name.startswith("encodings")}
    assert not added & {"antigravity", "this", "turtle", "tkinter", "idlelib", "distutils", "lib2to3"}


def test_the_stage_builds_the_same_corpus_each_time(tmp_path, run_stage):
    config = {"source": {"kind": "embedded", "minimum_characters": 3000}, "held_out_fraction": 0.1}
    one, two = run_stage("corpus", "one", config), run_stage("corpus", "two", config)
    assert one.manifest.payload == two.manifest.payload
    assert kept(one, "train") and kept(one, "held_out")


def test_a_minimum_score_on_unscored_text_is_refused(run_stage):
    config = {"source": {"kind": "embedded"}, "held_out_fraction": 0.1, "minimum_int_score": 3}
    with pytest.raises(UserError, match=r"minimum_int_score is 3, but .* no educational scores: set .* to 0"):
        run_stage("corpus", "scored", config)
