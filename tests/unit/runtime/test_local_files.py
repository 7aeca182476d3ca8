"""Local files are read once, and again whenever their content may have changed, whatever their times say."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from effllm.runtime import local_files
from effllm.runtime.artifact import FileDigest, digest_file
from effllm.runtime.local_files import read_sha256, sha256_of

A, B = (hashlib.sha256(text).hexdigest() for text in (b"aaaa", b"bbbb"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of four bytes."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"aaaa")
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read, one entry for each time; none is too young to be recorded."""
    found = []

    def digest(path: Path) -> FileDigest:
        found.append(path)
        return digest_file(path)

    monkeypatch.setattr(local_files, "digest_file", digest)
    monkeypatch.setattr(local_files, "_SETTLED_S", -1.0)
    return found


def _rewrite(path: Path) -> None:
    path.write_bytes(b"bbbb")


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"bbbb")
    other.replace(path)


def test_a_file_is_read_once(file: Path, reads: list[Path], tmp_path: Path) -> None:
    assert [sha256_of(file, tmp_path) for _ in range(3)] == [A, A, A]
    assert reads == [file]


def test_what_a_stage_has_read_is_not_read_again(file: Path, reads: list[Path], tmp_path: Path) -> None:
    assert read_sha256(file, tmp_path) == sha256_of(file, tmp_path) == A
    assert reads == [file]
    assert read_sha256(file, tmp_path) == A
    assert reads == [file, file], "a stage reads what it builds from"


@pytest.mark.parametrize("change", [_rewrite, _replace])
def test_other_content_of_the_same_size_and_time_is_seen(
    file: Path, reads: list[Path], tmp_path: Path, change: Callable[[Path], None]
) -> None:
    assert sha256_of(file, tmp_path) == A
    before = file.stat()
    change(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert sha256_of(file, tmp_path) == B


def test_a_file_that_was_just_written_is_not_recorded(file: Path, tmp_path: Path) -> None:
    """The next write may fall into the same tick of the file system's clock."""
    os.utime(file, (0, 0))
    assert sha256_of(file, tmp_path) == A
    assert not list(tmp_path.glob("digests/*"))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"identity": 1, "sha256": 2}'])
def test_a_damaged_record_is_made_anew(file: Path, reads: list[Path], tmp_path: Path, content: bytes) -> None:
    sha256_of(file, tmp_path)
    (record,) = tmp_path.glob("digests/*.json")
    record.write_bytes(content)
    assert sha256_of(file, tmp_path) == sha256_of(file, tmp_path) == A
    assert reads == [file, file]


def test_results_that_cannot_be_written_cost_another_reading(file: Path, reads: list[Path], tmp_path: Path) -> None:
    # Root may write everywhere, but not below a file.
    assert sha256_of(file, file) == sha256_of(file, file) == A
    assert reads == [file, file]
