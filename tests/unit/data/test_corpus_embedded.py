"""The text of the Python installation as a corpus."""

import ast
import collections
import inspect
import json
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
    parser = found["docstring/argparse.ArgumentParser"]
    assert parser["text"].startswith("Object for parsing command line strings into Python objects.")
    assert parser["file_path"] == "argparse.py"
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


@pytest.mark.slow
def test_shorter_documents_are_left_out_and_no_module_is_imported_for_its_docstrings(rows):
    program = (
        "import json, sys; from effllm.data.sources.embedded import EmbeddedSource; before = set(sys.modules); "
        "texts = [text for batch in EmbeddedSource(2000).batches() for text in batch.column('text').to_pylist()]; "
        "print(json.dumps([texts, sorted(set(sys.modules) - before)]))"
    )
    finished = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    texts, imported = json.loads(finished.stdout)
    assert min(len(row["text"]) for row in rows) >= 200
    assert texts == [row["text"] for row in rows if len(row["text"]) >= 2000]
    assert not set(imported) & {"antigravity", "this", "turtle", "tkinter", "distutils", "lib2to3", "asyncio"}


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


def test_the_stage_keeps_every_text_once_but_for_near_duplicates_across_the_split(run_stage, rows):
    config = {"source": {"kind": "embedded", "minimum_characters": 200}, "held_out_fraction": 0.1}
    corpus = run_stage("corpus", "embedded", config)
    train, held_out = kept(corpus, "train"), kept(corpus, "held_out")
    assert len(held_out) > 50
    texts = [row["text"] for row in train + held_out]
    assert len(set(texts)) == len(texts) and set(texts) < {row["text"] for row in rows}
    summary = corpus.json("corpus.json")
    left = summary["dropped"]["near_duplicate"] + summary["dropped"]["contained"]
    assert len(texts) + left == len({row["text"] for row in rows}) and left < 60
    # Of topics that other topics hold whole, and of docstrings that several modules share, a third of the bytes was.
    assert summary["overlap"]["held_out_byte_share_covered"]["0.8"] < 0.02
    assert summary["overlap"]["maximum_jaccard"] < 0.5


def test_a_minimum_score_on_unscored_text_is_refused(run_stage):
    config = {"source": {"kind": "embedded"}, "held_out_fraction": 0.1, "minimum_int_score": 3}
    with pytest.raises(UserError, match=r"minimum_int_score is 3, but .* no educational scores: set .* to 0"):
        run_stage("corpus", "scored", config)
