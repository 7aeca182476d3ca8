"""Tokenizers round-trip any text and read only training text; packed files hold what re-encoding gives."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers
from corpus_documents import document, kept, write_parquet

from effllm.data import packing
from effllm.data.packing import pack
from effllm.data.shards import read_batches
from effllm.data.tokenizer import END_OF_TEXT, load
from effllm.data.tokens import PackedTokens
from effllm.data.workers import Workers
from effllm.errors import UserError
from effllm.runtime.artifact import Artifact
from tests.hub.server import Status

TEXTS = [
    "plain English text, with  spaces \t and\r\nlines \n\n",
    "naïve café — “quotes” 日本語 한국어 العربية עברית 🧑‍🚀 e\u0301",
    "\u0000\u0001\x7f\ufeff\uffff\U0010ffff",
    f"before {END_OF_TEXT} after",
    "",
]


@pytest.fixture
def corpus(tmp_path, sample_files):
    rows = [document(n, text=document(n)["text"] + TEXTS[n % len(TEXTS)]) for n in range(700)]
    return sample_files([write_parquet(tmp_path / "a.parquet", rows)], shard_documents=300)


@pytest.fixture
def train(run_stage, corpus):
    def train(id="bpe", vocab_size=400, corpus=corpus):
        tokenizer = {"kind": "train", "corpus": "sample", "vocab_size": vocab_size, "minimum_frequency": 2}
        return run_stage("tokenizer", id, {"tokenizer": tokenizer}, corpus=corpus)

    return train


@pytest.fixture
def packed(run_stage, corpus, train):
    return run_stage(
        "tokens", "packed", {"corpus": "sample", "tokenizer": "bpe"}, corpus=corpus, tokenizer=train()
    ).directory


def test_any_text_decodes_to_itself(train):
    tokenizer = transformers.AutoTokenizer.from_pretrained(train().directory / "tokenizer", local_files_only=True)
    random = np.random.default_rng(0)
    points = random.integers(0, 0x110000, size=(200, 30))
    noise = ["".join(chr(point) for point in row if not 0xD800 <= point <= 0xDFFF) for row in points]
    for text in TEXTS + noise:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert max(ids, default=0) < 400


def test_end_of_text_begins_ends_and_pads_and_length_is_not_limited(train):
    tokenizer = load(train().directory)
    assert len(tokenizer) == 400
    assert tokenizer.bos_token == tokenizer.eos_token == tokenizer.pad_token == END_OF_TEXT
    assert tokenizer.model_max_length > 1 << 40
    assert tokenizer("two words")["input_ids"] == tokenizer("two words", add_special_tokens=False)["input_ids"]


def test_held_out_text_is_not_read(tmp_path, corpus, train):
    expected = train().manifest.payload
    for shard in corpus.directory.glob("held_out-*.parquet"):
        shard.unlink()
    manifest = json.loads((corpus.directory / "manifest.json").read_text())
    manifest["payload"] = {name: digest for name, digest in manifest["payload"].items() if "held_out" not in name}
    # A corpus that never had the files: its manifest, the copy beside it, and no digest of the earlier one.
    for name in ("manifest.json", ".published.json"):
        (corpus.directory / name).write_text(json.dumps(manifest))
    provenance = json.loads((corpus.directory / "provenance.json").read_text())
    del provenance["manifest_sha256"]
    (corpus.directory / "provenance.json").write_text(json.dumps(provenance))
    blinded = Artifact.open(corpus.directory / "manifest.json")
    assert train(id="blinded", corpus=blinded).manifest.payload == expected


def test_a_change_in_the_training_text_changes_the_tokenizer(tmp_path, sample_files, train):
    rows = [document(n, text=f"Entirely other words, number {n}, for other merges.") for n in range(700)]
    other = sample_files([write_parquet(tmp_path / "b.parquet", rows)], id="other")
    assert train(id="other", vocab_size=290, corpus=other).manifest.payload != train("a", 290).manifest.payload


@pytest.mark.slow
def test_processes_with_different_hash_seeds_train_the_same_tokenizer(tmp_path, corpus):
    config = {"tokenizer": {"kind": "train", "corpus": "sample", "vocab_size": 400, "minimum_frequency": 1}}
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"stage": "tokenizer", "version": 1, "config": config}))
    manifests = []
    for seed, threads in (("1", "1"), ("2", "2")):
        output = tmp_path / seed / "tokenizer" / "bpe"
        argv = [sys.executable, "-m", "effllm.data.tokenizer", "--spec", spec, "--output", output]
        environment = os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        argv += ["--input", f"corpus={corpus.directory / 'manifest.json'}"]
        subprocess.run(argv, check=True, env=environment, capture_output=True)
        manifests.append((output / "manifest.json").read_bytes())
    assert manifests[0] == manifests[1]


def test_a_corpus_too_small_for_the_vocabulary_names_both_numbers(train):
    with pytest.raises(UserError, match=r"corpus sample is too small .* vocab_size 60000: .* gives \d+ tokens"):
        train(vocab_size=60_000)


def test_a_hub_tokenizer_is_saved_from_its_pinned_revision(hub, run_stage, train):
    local = train().directory / "tokenizer"
    files = {path.name: path.read_bytes() for path in local.iterdir()}
    revision = hub.add("model", "Qwen/Qwen2.5-7B", files | {"model.safetensors": b"large", "config.json": b"{}"})
    hub.fault("/resolve/.*tokenizer.json", Status(503))
    config = {"tokenizer": {"kind": "hub", "repo": "Qwen/Qwen2.5-7B", "revision": revision}}
    fetched = run_stage("tokenizer", "hub", config)
    assert hub.asked("safetensors") == []
    assert load(fetched.directory)("some text")["input_ids"] == load(local.parent)("some text")["input_ids"]
    for path in (fetched.directory / "tokenizer").iterdir():
        assert str(fetched.directory) not in path.read_text() and ".scratch" not in path.read_text()


def test_a_repository_without_a_tokenizer_is_said_to_have_none(hub, run_stage):
    revision = hub.add("model", "owner/weights", {"model.safetensors": b"large", "config.json": b"{}"})
    config = {"tokenizer": {"kind": "hub", "repo": "owner/weights", "revision": revision}}
    with pytest.raises(UserError, match=r"owner/weights at .* holds no tokenizer that can be read") as raised:
        run_stage("tokenizer", "hub", config)
    assert ".scratch" not in str(raised.value)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_packed_tokens_are_the_documents_encoded_one_by_one(corpus, train, packed, split):
    tokenizer = load(train().directory)
    texts = [row["text"] for row in kept(corpus, split)]
    expected = [
        [*tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"], tokenizer.eos_token_id]
        for text in texts
    ]
    tokens = PackedTokens.open(packed, split)
    assert [document.tolist() for document in tokens.documents()] == expected
    flat = [id for ids in expected for id in ids]
    assert tokens.ids.tolist() == flat and len(tokens) == len(flat)
    assert tokens.boundaries.tolist() == np.cumsum([len(ids) for ids in expected]).tolist()
    assert tokens.utf8_bytes == sum(len(text.encode()) for text in texts)
    assert (tokens.eos_token_id, tokens.vocab_size) == (tokenizer.eos_token_id, 400)


def test_a_text_that_spells_the_end_of_text_token_does_not_end_its_document(corpus, packed):
    texts = [text for batch in read_batches(corpus.directory, "train") for text in batch.column("text").to_pylist()]
    assert any(END_OF_TEXT in text for text in texts)
    tokens = PackedTokens.open(packed, "train")
    assert np.count_nonzero(tokens.ids == tokens.eos_token_id) == len(texts)


def test_sequences_are_consecutive_windows_without_the_partial_one(packed):
    tokens = PackedTokens.open(packed, "train")
    for length in (7, 128, len(tokens)):
        sequences = tokens.sequences(length)
        windows = [sequences[index] for index in range(len(sequences))]
        assert len(windows) == len(tokens) // length
        assert all(window.dtype == np.int64 and window.shape == (length,) for window in windows)
        assert np.concatenate(windows).tolist() == tokens.ids[: len(windows) * length].tolist()
        for outside in (len(sequences), -1):
            with pytest.raises(IndexError, match=f"sequence {outside} of {len(sequences)}"):
                sequences[outside]


def test_text_too_short_for_one_sequence_is_refused(packed):
    tokens = PackedTokens.open(packed, "held_out")
    with pytest.raises(UserError, match=rf"held_out\.bin has {len(tokens)} tokens, too few for one sequence of 99999"):
        tokens.sequences(99_999)


def test_a_pickled_reader_carries_its_path_and_not_its_tokens(packed):
    sequences = PackedTokens.open(packed, "train").sequences(64)
    content = pickle.dumps(sequences)
    assert len(content) < 500 + len(str(packed))
    assert pickle.loads(content)[3].tolist() == sequences[3].tolist()


def test_missing_or_cut_token_files_are_named(packed, tmp_path):
    with pytest.raises(UserError, match=r"tokens\.json is missing"):
        PackedTokens.open(tmp_path, "train")
    with pytest.raises(UserError, match=r"no split 'test'; choose one of held_out, train"):
        PackedTokens.open(packed, "test")
    path = packed / "train.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=rf"train\.bin has {path.stat().st_size} bytes where"):
        PackedTokens.open(packed, "train")


def packed_in(directory, corpus, tokenizer, dtype="<u2", split="train", processes=1):
    """The files of one split, packed below `directory`, and its counts."""
    for folder in (directory, directory / "scratch", directory / "output"):
        folder.mkdir(exist_ok=True)
    for file in (directory / "output").iterdir():
        file.unlink()
    pieces = packing.pieces_of(corpus.directory, split, tokenizer.directory, np.dtype(dtype), directory / "scratch")
    with Workers(processes) as workers:
        counts = pack(pieces, split, np.dtype(dtype), directory / "output", directory / "scratch", 0, workers)
    return counts, {file.name: file.read_bytes() for file in (directory / "output").iterdir()}


def test_ids_that_do_not_fit_16_bits_are_kept_whole(tmp_path, corpus, train):
    tokenizer = train()
    _, narrow = packed_in(tmp_path / "narrow", corpus, tokenizer)
    _, wide = packed_in(tmp_path / "wide", corpus, tokenizer, "<u4")
    assert np.frombuffer(narrow["train.bin"], "<u2").tolist() == np.frombuffer(wide["train.bin"], "<u4").tolist()


def test_pieces_and_processes_do_not_show(tmp_path, corpus, train, monkeypatch):
    tokenizer = train()
    whole = packed_in(tmp_path / "whole", corpus, tokenizer)
    monkeypatch.setattr(packing, "_PIECE_DOCUMENTS", 17)
    assert packed_in(tmp_path / "pieces", corpus, tokenizer) == whole
    assert packed_in(tmp_path / "processes", corpus, tokenizer, processes=2) == whole


def test_encoding_is_taken_up_wherever_it_was_killed(tmp_path, corpus, train, monkeypatch):
    class Killed(BaseException):
        pass

    tokenizer = train()
    whole = packed_in(tmp_path / "whole", corpus, tokenizer)
    monkeypatch.setattr(packing, "_PIECE_DOCUMENTS", 17)
    finished, left = {name: getattr(Path, name) for name in ("replace", "unlink")}, [0]

    def dying(name):
        def step(path, *arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return finished[name](path, *arguments, **options)

        return step

    with monkeypatch.context() as patch:
        for at in (1, 3, 4, 5, 6, 7, 8, 20, 41, 60):
            left[0] = at
            for name in finished:
                patch.setattr(Path, name, dying(name))
            with pytest.raises(Killed):
                packed_in(tmp_path / "killed", corpus, tokenizer)
            patch.undo()
            patch.setattr(packing, "_PIECE_DOCUMENTS", 17)
    assert packed_in(tmp_path / "killed", corpus, tokenizer) == whole


def test_a_large_vocabulary_is_packed_in_32_bits(run_stage, corpus, train):
    small = train()
    tokenizer = load(small.directory)
    tokenizer.add_tokens([f"<extra-{number}>" for number in range(66_000)])
    tokenizer.add_special_tokens({"eos_token": "<extra-65999>"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "load_tokenizer", lambda directory: tokenizer)
        wide = run_stage("tokens", "wide", {"corpus": "sample", "tokenizer": "bpe"}, corpus=corpus, tokenizer=small)
    tokens = PackedTokens.open(wide.directory, "held_out")
    assert tokens.ids.dtype == np.uint32 and tokens.ids[-1] == tokens.eos_token_id == 66_399


def test_a_tokenizer_without_an_end_of_text_token_is_refused(run_stage, corpus, train):
    artifact = train()
    tokenizer = load(artifact.directory)
    tokenizer.eos_token = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "load_tokenizer", lambda directory: tokenizer)
        with pytest.raises(UserError, match=r"tokenizer bpe has no end-of-text token"):
            run_stage("tokens", "endless", {"corpus": "sample", "tokenizer": "bpe"}, corpus=corpus, tokenizer=artifact)
