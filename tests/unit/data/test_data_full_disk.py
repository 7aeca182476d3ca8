"""A disk that fills up: the error says that it is full, and names the file that was being written."""

import errno
import resource

import numpy as np
import pytest
from corpus_documents import document, write_parquet

from effllm.data.corpus import sample
from effllm.data.packing import pack
from effllm.data.sampling import SeenTexts
from effllm.data.sources.files import FilesSource
from effllm.data.tokenizer import load
from effllm.errors import UserError
from effllm.study.data import Corpus


@pytest.fixture
def full_file(tmp_path):
    """A name below `tmp_path/output` that every write to fails as on a full disk."""

    def make(name):
        (tmp_path / "output").mkdir(exist_ok=True)
        (tmp_path / "output" / name).symlink_to("/dev/full")
        return tmp_path / "output"

    return make


def check(error, number, path):
    assert error.value.errno == number
    assert error.value.filename == str(path)


def sampling_incompressible(tmp_path, output, count):
    random = np.random.default_rng(0)
    rows = [document(n, text=random.bytes(500).hex()) for n in range(count)]
    source = FilesSource([write_parquet(tmp_path / "a.parquet", rows)])
    config = Corpus.model_validate({"source": {"kind": "files", "paths": ["a.parquet"]}, "held_out_fraction": 0.1})
    return lambda: sample(source, config, output, tmp_path)


def test_a_shard_that_cannot_be_begun_is_named(tmp_path, full_file):
    output = full_file("train-00000.parquet")
    run = sampling_incompressible(tmp_path, output, 100)
    with pytest.raises(OSError, match="No space left") as error:
        run()
    check(error, errno.ENOSPC, output / "train-00000.parquet")
    assert not list(tmp_path.glob("seen*"))


@pytest.mark.parametrize("limit", [3_000_000, 400_000])
def test_a_shard_that_cannot_grow_is_named(tmp_path, limit):
    # With the higher limit a row group written by the thread fails, with the lower one the group of the closing.
    output = tmp_path / "output"
    output.mkdir()
    run = sampling_incompressible(tmp_path, output, 9000 if limit > 1_000_000 else 1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The process ignores the signal that comes with it, so a write beyond fails with an errno, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    # Where documents wait until it is known what is held out.
    check(error, errno.EFBIG, tmp_path / "drawn" / "train-00000.parquet")
    assert not (tmp_path / "drawn").exists()


def test_a_token_file_that_does_not_fit_is_named(tmp_path, full_file, sample_files, run_stage):
    corpus = sample_files([write_parquet(tmp_path / "a.parquet", [document(n) for n in range(500)])])
    settings = {"kind": "train", "corpus": "sample", "vocab_size": 258, "minimum_frequency": 2}
    tokenizer = load(run_stage("tokenizer", "bpe", {"tokenizer": settings}, corpus=corpus).directory)
    output = full_file("train.bin")
    with pytest.raises(OSError, match="No space left") as error:
        pack(corpus.directory, "train", tokenizer, np.dtype("<u2"), output, 400)
    check(error, errno.ENOSPC, output / "train.bin")


def test_a_digest_database_that_cannot_grow_is_named(tmp_path):
    seen = SeenTexts(tmp_path / "seen", recent_limit=1)
    seen._connection.execute("PRAGMA max_page_count = 4")
    with pytest.raises(UserError, match=r"seen: database or disk is full; make room"):
        for start in range(100):
            seen.add([f"{start:08d}{index:08d}".encode() for index in range(100)])
    seen.close()
