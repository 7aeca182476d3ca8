"""Files of a hub that fails: what arrives is the hub's, what came is kept, and the rest is said in one sentence."""

import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from effllm.errors import UserError
from effllm.hub import patience, transfer
from effllm.hub.repository import Repository
from tests.hub.fixtures import environment
from tests.hub.server import Corrupt, Drip, Hang, Hub, IgnoreRange, Reset, Status, Truncate

WEIGHTS = bytes(range(256)) * 4000
FILES = {"config.json": b'{"a": 1}\n', "model.safetensors": WEIGHTS, "original/params.json": b"{}", "empty.txt": b""}
PATTERNS = ("*.json", "*.safetensors", "*.txt")
CDN = r"GET cdn .*model\.safetensors"


@pytest.fixture
def repository(hub: Hub) -> Repository:
    return Repository("model", "owner/name", hub.add("model", "owner/name", FILES))


def fetched(repository: Repository, directory: Path) -> dict[str, bytes]:
    directory.mkdir(exist_ok=True)
    repository.fetch(repository.files(PATTERNS), directory)
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def download_to_the_cache(hub: Hub, tmp_path: Path) -> None:
    """As `hf download` does."""
    revision = hub.repository("models", "owner/name").revision
    code = f"import huggingface_hub; huggingface_hub.snapshot_download('owner/name', revision={revision!r})"
    settings = environment(hub, tmp_path / "home") | {"HF_HUB_CACHE": constants.HF_HUB_CACHE}
    subprocess.run([sys.executable, "-c", code], env=os.environ | settings, check=True)
    hub.heal()


TOP = {name: data for name, data in FILES.items() if "/" not in name}


def test_the_files_of_the_top_folder_arrive_as_they_are(repository: Repository, hub: Hub, tmp_path: Path) -> None:
    assert fetched(repository, tmp_path / "out") == TOP
    # The address of the CDN is signed; the token of the hub is none of its business.
    assert len(hub.asked(CDN)) == 1
    assert [file.path for file in repository.files()] == sorted(FILES)


@pytest.mark.parametrize(
    ("pattern", "fault", "times", "expected_waits", "requests"),
    [
        (CDN, Status(503), 2, [1, 2], 3),
        (r"GET hub .*/resolve/.*safetensors", Status(503), 2, [1, 2], 1),
        (r"GET hub .*/tree/", Status(500), 1, [1], 1),
        (r"GET hub .*/tree/", Reset(after=10), 1, [1], 1),
        (r"GET hub .*/tree/", Truncate(after=10), 1, [1], 1),
        (r"GET hub .*/resolve/.*config", Status(429, {"Retry-After": "37"}), 1, [37], 1),
        (r"GET hub .*/resolve/.*config", Status(503, {"Retry-After": "120"}), 1, [120], 1),
        (CDN, Reset(after=500_000), 2, [1, 1], 3),
        (CDN, Truncate(after=300_000), 3, [1, 1, 1], 4),
        (CDN, Status(403), 1, [1], 2),
        (CDN, IgnoreRange(), 1, [], 1),
        (CDN, Corrupt(), 1, [], 2),
    ],
)
def test_what_passes_is_waited_for(
    repository: Repository,
    hub: Hub,
    waits: list[float],
    tmp_path: Path,
    pattern,
    fault,
    times,
    expected_waits,
    requests,
) -> None:
    hub.fault(pattern, fault, times)
    assert fetched(repository, tmp_path / "out") == TOP
    assert waits == expected_waits
    assert len(hub.asked(CDN)) == requests


def test_a_broken_transfer_goes_on_where_it_was_broken_off(repository: Repository, hub: Hub, tmp_path: Path) -> None:
    hub.fault(CDN, Truncate(after=300_000), times=2)
    assert fetched(repository, tmp_path / "out") == TOP
    assert [request.range for request in hub.asked(CDN)] == [None, "bytes=300000-", "bytes=600000-"]


def test_a_server_without_ranges_sends_the_whole_again(repository: Repository, hub: Hub, tmp_path: Path) -> None:
    hub.fault(CDN, Truncate(after=300_000))
    hub.fault(CDN, IgnoreRange())
    assert fetched(repository, tmp_path / "out") == TOP


def test_a_signed_address_that_has_expired_is_asked_for_anew(
    repository: Repository, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fault(CDN, Truncate(after=300_000))
    waited = []

    def wait(seconds: float) -> None:
        # After the first failure addresses have expired, after the second they hold again.
        waited.append(seconds)
        hub.signature_s = -1 if len(waited) == 1 else 60

    monkeypatch.setattr(patience, "sleep", wait)
    assert fetched(repository, tmp_path / "out") == TOP
    assert [request.range for request in hub.asked(CDN)] == [None, "bytes=300000-", "bytes=300000-"]
    assert len(hub.asked(r"GET hub .*/resolve/.*safetensors")) == 3
    assert len({request.path for request in hub.asked(CDN)}) == 3


def test_a_transfer_that_stands_still_is_broken_off(
    repository: Repository, hub: Hub, waits: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.fault(CDN, Hang(seconds=1.5, after=200_000))
    assert fetched(repository, tmp_path / "out") == TOP
    assert waits == [1] and len(hub.asked(CDN)) == 2


def test_a_transfer_in_drops_is_broken_off(
    repository: Repository, hub: Hub, waits: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "STALL_S", 0.2)
    hub.fault(CDN, Drip(size=100, seconds=0.05), times=99)
    with pytest.raises(UserError, match=r"cannot be fetched: .* bytes came in 0.2 s, time after time; what came"):
        fetched(repository, tmp_path / "out")
    assert waits == [1, 2, 4, 8, 16, 32]


def test_what_never_passes_ends_in_a_sentence_after_a_minute(
    repository: Repository, hub: Hub, waits: list[float], tmp_path: Path
) -> None:
    hub.fault(CDN, Status(503), times=99)
    with pytest.raises(UserError, match=r"the model owner/name cannot be fetched: the hub answers 503 Service Unavail"):
        fetched(repository, tmp_path / "out")
    assert waits == [1, 2, 4, 8, 16, 32]


def test_a_long_retry_after_is_said_and_not_slept(
    repository: Repository, hub: Hub, waits: list[float], tmp_path: Path
) -> None:
    hub.fault(r"/tree/", Status(429, {"Retry-After": "3600"}))
    with pytest.raises(UserError, match=r"limits this host's requests \(429\); the hub asks to wait 3600 s"):
        fetched(repository, tmp_path / "out")
    assert waits == []


def test_a_retry_after_may_be_a_date(repository: Repository, hub: Hub, waits: list[float], tmp_path: Path) -> None:
    from email.utils import formatdate

    hub.fault(r"/tree/", Status(503, {"Retry-After": formatdate(time.time() + 100, usegmt=True)}))
    assert fetched(repository, tmp_path / "out") == TOP
    assert len(waits) == 1 and 90 < waits[0] <= 100


def test_content_that_is_altered_on_the_way_is_never_taken(repository: Repository, hub: Hub, tmp_path: Path) -> None:
    hub.fault(CDN, Corrupt(), times=2)
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    with pytest.raises(UserError, match=rf"model.safetensors of owner/name at .* the hub lists \({digest}\), twice"):
        fetched(repository, tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_small_files_are_checked_too(repository: Repository, hub: Hub, tmp_path: Path) -> None:
    hub.fault(r"GET hub .*/resolve/.*config", Corrupt(), times=2)
    blob = hashlib.sha1(b"blob 9\0" + FILES["config.json"]).hexdigest()
    with pytest.raises(UserError, match=rf"config.json of owner/name .* another git digest .*\({blob}\)"):
        fetched(repository, tmp_path / "out")


def test_a_partial_file_of_something_else_is_replaced(repository: Repository, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".model.safetensors.partial").write_bytes(b"x" * 1000)
    assert fetched(repository, tmp_path / "out") == TOP
    assert [request.range for request in hub.asked(CDN)] == ["bytes=1000-", None]


def test_a_killed_download_is_taken_up(repository: Repository, hub: Hub, tmp_path: Path) -> None:
    hub.fault(CDN, Hang(seconds=60, after=700_000))
    code = (
        "import sys; from pathlib import Path; from effllm.hub.repository import Repository;"
        f"r = Repository('model', 'owner/name', {hub.repository('models', 'owner/name').revision!r});"
        f"r.fetch(r.files({PATTERNS!r}), Path(sys.argv[1]))"
    )
    out = tmp_path / "out"
    out.mkdir()
    process = subprocess.Popen([sys.executable, "-c", code, out], env=os.environ | environment(hub, tmp_path / "home"))
    partial = out / ".model.safetensors.partial"
    while not ((out / "config.json").exists() and partial.exists() and partial.stat().st_size > 600_000):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = partial.stat().st_size
    small = len(hub.asked("/resolve/.*config"))
    assert fetched(repository, out) == TOP
    assert hub.asked(CDN)[-1].range == f"bytes={kept}-"
    assert len(hub.asked("/resolve/.*config")) == small == 1


def test_a_file_in_the_cache_is_not_fetched_and_a_damaged_one_is(
    repository: Repository, hub: Hub, tmp_path: Path
) -> None:
    download_to_the_cache(hub, tmp_path)
    assert fetched(repository, tmp_path / "out") == TOP
    assert hub.asked("/resolve/") == []
    cached = repository.cached(repository.files(["model.safetensors"])[0])
    cached.resolve().write_bytes(WEIGHTS[::-1])
    assert fetched(repository, tmp_path / "again") == TOP
    assert len(hub.asked(CDN)) == 1


def test_offline_the_cache_is_what_there_is(
    repository: Repository, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"owner/name at .* is not in the hub's cache .* and HF_HUB_OFFLINE is set"):
        repository.files()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    download_to_the_cache(hub, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetched(repository, tmp_path / "out") == TOP
    assert hub.requests == []
    cached = repository.cached(repository.files(["model.safetensors"])[0])
    cached.resolve().write_bytes(WEIGHTS[::-1])
    with pytest.raises(UserError, match=r"model.safetensors in the hub's cache .* is damaged"):
        fetched(repository, tmp_path / "again")


# What the user is told.


@pytest.mark.parametrize(
    ("access", "tokens", "token", "said"),
    [
        (
            "gated",
            {},
            None,
            r"owner/closed is gated: accept its licence at http://.*/owner/closed .*set HF_TOKEN",
        ),
        (
            "gated",
            {"mine": set()},
            "mine",
            r"is gated and the account of HF_TOKEN has no access: accept its licence",
        ),
        ("gated", {}, "stale", r"the hub does not accept HF_TOKEN \(401\).*https://huggingface.co/settings/tokens"),
        (
            "private",
            {},
            None,
            r"does not exist on the hub, or is hidden from this account: correct the name",
        ),
        ("private", {"mine": set()}, "mine", r"does not exist on the hub, or is hidden from this account"),
    ],
)
def test_access_gets_the_right_advice(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, waits: list[float], access, tokens, token, said
) -> None:
    revision = hub.add("model", "owner/closed", FILES, access)
    hub.tokens.update(tokens)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=said) as raised:
        Repository("model", "owner/closed", revision).files()
    assert "network" not in str(raised.value) and "\n" not in str(raised.value)
    assert token is None or token not in str(raised.value)
    assert waits == []


def test_a_token_goes_to_the_hub_and_not_to_the_cdn_nor_into_the_log(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hub.tokens["hf_granted"] = {"owner/closed"}
    monkeypatch.setenv("HF_TOKEN", "hf_granted")
    repository = Repository("model", "owner/closed", hub.add("model", "owner/closed", FILES, "gated"))
    hub.fault(CDN, Status(503))
    assert fetched(repository, tmp_path / "out") == TOP
    assert {request.token for request in hub.requests if request.host == "hub"} == {"hf_granted"}
    assert {request.token for request in hub.requests if request.host == "cdn"} == {None}
    assert "503" in caplog.text and "hf_granted" not in caplog.text and "Signature" not in caplog.text


def test_access_that_a_file_needs_is_said_at_once(
    repository: Repository, hub: Hub, tmp_path: Path, waits: list[float]
) -> None:
    # The tree of a gated repository is open to all, its files are not.
    hub.fault(r"/resolve/.*safetensors", Status(403, {"X-Error-Code": "GatedRepo"}), times=9)
    with pytest.raises(UserError, match=r"the model owner/name is gated: accept its licence"):
        fetched(repository, tmp_path / "out")
    assert waits == []


@pytest.mark.parametrize(
    ("repo", "revision", "said"),
    [
        (
            "owner/name",
            "0" * 40,
            r"the model owner/name has no revision 0{40}: take a commit that http",
        ),
        ("owner/other", "0" * 40, r"the model owner/other does not exist on the hub"),
        ("https://huggingface.co/a/b", "0" * 40, r"cannot name a repository of the hub .*: write owner/name"),
        ("", "0" * 40, r"'' cannot name a repository of the hub"),
    ],
)
def test_a_wrong_name_is_said_at_once(repository: Repository, waits: list[float], repo, revision, said) -> None:
    with pytest.raises(UserError, match=said):
        Repository("model", repo, revision).files()
    assert waits == []


def test_a_host_that_is_not_there_is_given_up_soon(
    repository: Repository, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"127.0.0.1 does not answer \(ConnectError: .*check the network of this host"):
        repository.files()
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    with pytest.raises(UserError, match=r"the name hub.invalid cannot be resolved, so this host has no network"):
        repository.files()
    assert waits == [1, 2, 1, 2]


def test_a_full_disk_is_said_before_the_first_byte(
    repository: Repository, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from collections import namedtuple

    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(1000))
    with pytest.raises(UserError, match=r"has 0.0 GB to fetch and the file system of .* has 0.0 GB free"):
        fetched(repository, tmp_path / "out")
    assert hub.asked("/resolve/") == []


def test_a_name_that_leads_out_of_the_directory_is_refused(hub: Hub) -> None:
    revision = hub.add("model", "owner/name", {"../outside.json": b"{}"})
    with pytest.raises(UserError, match=r"the file name '../outside.json' leads out of the repository"):
        Repository("model", "owner/name", revision).files(PATTERNS)


def test_long_lists_come_in_pages(hub: Hub) -> None:
    names = {f"data/{index:04}.parquet": b"" for index in range(2500)}
    revision = hub.add("dataset", "owner/name", names)
    assert [file.path for file in Repository("dataset", "owner/name", revision).files()] == sorted(names)
    assert len(hub.asked("/tree/")) == 3
