"""How hard texts and windows are, against independent computations; the stage that writes it."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from corpus_documents import document, kept, write_parquet

from effllm.data import arrays
from effllm.data.order import build, texts
from effllm.data.order.windows import window_means
from effllm.data.tokens import PackedTokens
from effllm.errors import UserError

SENTENCES = [
    "The cat sat on the mat.",
    "Is it so? It is!",
    'He said "no." Then 3.5 tables broke\u2026 and e.g. nothing',
]


@pytest.mark.parametrize("level", [1, 6, 9])
def test_the_compression_ratio_is_that_of_python_s_own_library(level: int) -> None:
    for text in ("a" * 1000, "naïve café \u2014 日本語\n" * 3, Path(__file__).read_text()):
        compressor = zlib.compressobj(level, wbits=31)
        size = len(compressor.compress(text.encode()) + compressor.flush())
        assert texts.compression_ratio(text, level) == size / len(text.encode())


@pytest.mark.parametrize(
    ("text", "words", "sentences", "syllables"),
    [
        (SENTENCES[0], 6, 1, 6),
        (SENTENCES[1], 5, 2, 5),
        # A number is no word and its point ends nothing; "e.g." is two words and does; "tables" and "nothing" have two.
        (SENTENCES[2], 10, 4, 12),
        ("don't stop the table, Marie", 5, 1, 7),
        ("One line\nwithout an end", 5, 1, 6),
    ],
)
def test_flesch_s_formula_on_texts_counted_by_hand(text: str, words: int, sentences: int, syllables: int) -> None:
    expected = 206.835 - 1.015 * words / sentences - 84.6 * syllables / words
    assert texts.flesch_reading_ease(text) == pytest.approx(expected, rel=1e-12)


def test_syllables_by_the_spelling() -> None:
    counts = {"the": 1, "make": 1, "table": 2, "apple": 2, "rule": 1, "whole": 1, "be": 1, "tree": 1, "queue": 1}
    counts |= {"happy": 2, "rhythm": 1, "beautiful": 3, "university": 5, "Python": 2, "nth": 1, "shelle": 1}
    assert {word: texts.syllables(word) for word in counts} == counts


def test_a_text_without_words_has_no_ease_and_one_without_repetition_no_diversity() -> None:
    assert texts.flesch_reading_ease("1234 + 5 = ?!") is None
    assert texts.lexical_diversity("") is None
    assert texts.lexical_diversity("every word of this comes once") is None


def _factors_step_by_step(words: list[str]) -> float:
    """The definition, read literally: the shortest stretches whose share of distinct words is below 0.72."""
    found, start = 0.0, 0
    for end in range(1, len(words) + 1):
        stretch = words[start:end]
        if len(set(stretch)) / len(stretch) < 0.72:
            found, start = found + 1, end
    rest = words[start:]
    return found + ((1 - len(set(rest)) / len(rest)) / 0.28 if rest else 0)


def test_lexical_diversity_is_mtld() -> None:
    # Three words hold two distinct ones: a factor every three words, in both directions.
    assert texts.lexical_diversity("a b a b a b") == 3.0
    random = np.random.default_rng(0)
    for size in (12, 40, 300):
        words = [f"w{'x' * int(n)}" for n in random.zipf(1.4, 300) if n < 200][:size]
        factors = [_factors_step_by_step(words), _factors_step_by_step(words[::-1])]
        expected = (len(words) / factors[0] + len(words) / factors[1]) / 2
        assert texts.lexical_diversity(" ".join(words).title()) == pytest.approx(expected, rel=1e-12)


def test_a_window_has_the_mean_of_its_tokens() -> None:
    random = np.random.default_rng(1)
    lengths = random.integers(1, 40, 200)
    values = random.normal(size=200)
    values[random.random(200) < 0.3] = np.nan
    values[50:60] = np.nan
    of_tokens = np.repeat(values, lengths)
    windows = len(of_tokens) // 32
    expected = [
        np.mean(part[np.isfinite(part)]) if np.isfinite(part).any() else np.nan
        for part in of_tokens[: windows * 32].reshape(windows, 32)
    ]
    assert np.isnan(expected).any()
    found = window_means(values, np.cumsum(lengths), 32)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.fixture
def text(tmp_path, sample_files, run_stage):
    """A corpus whose documents differ in length and score, some without one, and its tokens."""
    rows = [
        document(n, text=document(n)["text"] * (1 + n % 7), score=None if n % 5 == 0 else n % 11 / 3)
        for n in range(300)
    ]
    corpus = sample_files([write_parquet(tmp_path / "a.parquet", rows)], shard_documents=90)
    tokenizer = {"tokenizer": {"kind": "train", "corpus": "sample", "vocab_size": 300, "minimum_frequency": 2}}
    bpe = run_stage("tokenizer", "bpe", tokenizer, corpus=corpus)
    tokens = run_stage("tokens", "packed", {"corpus": "sample", "tokenizer": "bpe"}, corpus=corpus, tokenizer=bpe)
    return {"corpus": corpus, "tokens": tokens}


def _config(kind: str, **settings: int) -> dict:
    return {"tokens": "packed", "sequence_length": 64, "by": {"kind": kind, **settings}}


def _of_documents(corpus) -> dict[str, list]:
    rows = kept(corpus, "train")
    return {
        "score": [row["score"] for row in rows],
        "compression": [texts.compression_ratio(row["text"], 6) for row in rows],
        "readability": [-texts.flesch_reading_ease(row["text"]) for row in rows],
        "lexical_diversity": [texts.lexical_diversity(row["text"]) for row in rows],
    }


def test_the_stage_writes_a_value_for_each_window_and_says_what_it_did(text, run_stage, monkeypatch) -> None:
    stream = PackedTokens.open(text["tokens"].directory, "train")
    by_kind = _of_documents(text["corpus"]) | {"length": np.diff(stream.boundaries, prepend=0).tolist()}
    monkeypatch.setattr(build, "_PIECE_DOCUMENTS", 25)
    for kind, values in by_kind.items():
        inputs = {"tokens": text["tokens"]} if kind == "length" else text
        artifact = run_stage("order", kind, _config(kind), **inputs)
        expected = window_means(np.array(values, dtype=float), stream.boundaries, 64)
        np.testing.assert_array_equal(arrays.load(artifact.directory / "difficulty.npy"), expected.astype("<f4"))
        said = artifact.json("order.json")
        assert (said["windows"], said["documents"]) == (len(stream) // 64, len(stream.boundaries))
        assert said["documents_without_value"] == sum(value is None for value in values), kind
        known = np.sort(expected[np.isfinite(expected)])
        assert said["windows_without_value"] == len(expected) - len(known)
        assert (said["quantiles"]["0"], said["quantiles"]["1"]) == (known[0], known[-1])
        assert said["quantiles"]["0.5"] == pytest.approx(np.median(known))
    assert sum(value is None for value in by_kind["score"]) > 20


def test_the_bytes_are_the_same_on_any_number_of_cores_and_after_a_kill(text, run_stage, monkeypatch) -> None:
    once = run_stage("order", "one", _config("compression"), **text).manifest.payload
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert run_stage("order", "two", _config("compression"), **text).manifest.payload == once
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(build, "_PIECE_DOCUMENTS", 25)
    measured = []

    original = build.measure_piece

    def dies_at_the_seventh(measure, piece):
        measured.append(piece.values.exists())
        if len(measured) == 7:
            raise KeyboardInterrupt
        return original(measure, piece)

    monkeypatch.setattr(build, "measure_piece", dies_at_the_seventh)
    with pytest.raises(KeyboardInterrupt):
        run_stage("order", "killed", _config("compression"), **text)
    assert run_stage("order", "killed", _config("compression"), **text).manifest.payload == once
    assert measured[7:13] == [True] * 6 and not any(measured[13:])


def test_a_corpus_without_scores_is_refused(tmp_path, text, sample_files, run_stage) -> None:
    corpus = sample_files(
        [write_parquet(tmp_path / "b.parquet", [document(n, score=None) for n in range(300)])], id="b"
    )
    bpe = {"tokenizer": {"kind": "train", "corpus": "b", "vocab_size": 300, "minimum_frequency": 2}}
    tokenizer = run_stage("tokenizer", "b", bpe, corpus=corpus)
    tokens = run_stage("tokens", "b", {"corpus": "b", "tokenizer": "b"}, corpus=corpus, tokenizer=tokenizer)
    with pytest.raises(UserError, match=r"orders\.unscored: no training document of b has a value of 'score'"):
        run_stage("order", "unscored", _config("score"), corpus=corpus, tokens=tokens)
    with pytest.raises(UserError, match=r"delete .*packed"):
        run_stage("order", "other", _config("compression"), corpus=corpus, tokens=text["tokens"])
    assert json.loads((tokens.directory / "tokens.json").read_text())["splits"]["train"]["documents"] > 0
