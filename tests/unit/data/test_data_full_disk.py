"""A disk that fills up: the error says that it is full, and names the file that was being written."""

import errno
import resource

import numpy as np
import pytest
from corpus_documents import document, write_parquet

from effllm.data.corpus import sample
from effllm.data.packing import encode, pack, pieces_of
from effllm.data.settings import Corpus
from effllm.data.sources.files import FilesSource
from effllm.data.workers import Workers


def check(error, number, path):
    assert error.value.errno == number
    assert error.value.filename == str(path)


def sampling_incompressible(tmp_path, output, count):
    random = np.random.default_rng(0)
    rows = [document(n, text=random.bytes(500).hex()) for n in range(count)]
    source = FilesSource([write_parquet(tmp_path / "a.parquet", rows)])
    config = Corpus.model_validate({"source": {"kind": "files", "paths": ["a.parquet"]}, "held_out_fraction": 0.1})
    return lambda: sample(source, config, output, tmp_path)


def test_a_shard_that_cannot_be_begun_is_named(tmp_path):
    (tmp_path / "writing").mkdir()
    (tmp_path / "writing" / "train-00000.parquet").symlink_to("/dev/full")
    run = sampling_incompressible(tmp_path, tmp_path, 100)
    with pytest.raises(OSError, match="No space left") as error:
        run()
    check(error, errno.ENOSPC, tmp_path / "writing" / "train-00000.parquet")


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
    check(error, errno.EFBIG, tmp_path / "writing" / "train-00000.parquet")
    assert not list(output.iterdir())


def test_a_token_file_that_does_not_fit_is_named(tmp_path, sample_files, run_stage):
    corpus = sample_files([write_parquet(tmp_path / "a.parquet", [document(n) for n in range(500)])])
    settings = {"kind": "train", "corpus": "sample", "vocab_size": 258, "minimum_frequency": 2}
    tokenizer = run_stage("tokenizer", "bpe", {"tokenizer": settings}, corpus=corpus)
    scratch = tmp_path / "output"
    scratch.mkdir()
    pieces = pieces_of(corpus.directory, "train", tokenizer.directory, np.dtype("<u2"), scratch)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Workers(1) as workers:
        # What is encoded is there, the file of all ids cannot be.
        list(workers.map(encode, pieces))
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        try:
            with pytest.raises(OSError, match="File too large") as error:
                pack(pieces, "train", np.dtype("<u2"), tmp_path, scratch, 400, workers)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    check(error, errno.EFBIG, scratch / "train.bin")
