"""Artifacts are published whole or not at all, and their manifests say what they are and nothing else."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from effllm.errors import CellFailure, UserError
from effllm.planning.verify import verify
from effllm.results.provenance import Provenance
from effllm.runtime.artifact import MANIFEST, Artifact, Manifest
from effllm.runtime.publishing import publish

PROVENANCE = Provenance(wall_s=1.0)


def _publish(root: Path, content: str, **changes: object) -> Artifact:
    staging = root / "staging"
    (staging / "records").mkdir(parents=True)
    (staging / "payload.txt").write_text(content)
    (staging / "records" / "seconds.txt").write_text(str(changes.pop("seconds", 1)))
    arguments = {"stage": "corpus", "id": "a", "spec": {"x": 1}, "parents": {}, "provenance": PROVENANCE} | changes
    return publish(staging, root / "results" / "corpus" / "a", **arguments)


def test_equal_content_gives_equal_manifests_whatever_was_recorded(tmp_path: Path) -> None:
    first = _publish(tmp_path, "text", seconds=1, provenance=Provenance(python="a", wall_s=1.0))
    text = (first.directory / MANIFEST).read_text()
    second = _publish(tmp_path, "text", seconds=2, provenance=Provenance(python="b", wall_s=2.0))
    assert (second.directory / MANIFEST).read_text() == text
    assert second.sha256 == first.sha256
    assert _publish(tmp_path, "other").sha256 != first.sha256


def test_a_new_artifact_replaces_the_old_one_entirely(tmp_path: Path) -> None:
    first = _publish(tmp_path, "text")
    (first.directory / "stray").write_text("left over")
    second = _publish(tmp_path, "new")
    assert not (second.directory / "stray").exists()
    assert (second.directory / "payload.txt").read_text() == "new"


@pytest.mark.parametrize("damage", ["delete", "truncate", "alter"])
def test_damage_behind_a_manifest_is_named_with_its_remedy(tmp_path: Path, damage: str) -> None:
    artifact = _publish(tmp_path, "text")
    artifact.verify()
    path = artifact.directory / "payload.txt"
    {"delete": path.unlink, "truncate": lambda: path.write_text("te"), "alter": lambda: path.write_text("texx")}[
        damage
    ]()
    with pytest.raises(UserError) as caught:
        Artifact.open(artifact.directory / MANIFEST).verify()
    assert str(path) in str(caught.value)
    assert f"delete {artifact.directory}" in str(caught.value)


def test_a_failed_cell_is_published_without_its_payload(tmp_path: Path) -> None:
    artifact = _publish(tmp_path, "half a result", failure=CellFailure("oom", "too large"))
    assert artifact.manifest.status == "oom"
    assert artifact.manifest.payload == {}
    assert not (artifact.directory / "payload.txt").exists()
    assert (artifact.directory / "records" / "seconds.txt").exists()
    with pytest.raises(CellFailure, match="corpus/a: too large"):
        artifact.require_ok()


def test_an_unreadable_manifest_is_the_users_to_delete(tmp_path: Path) -> None:
    artifact = _publish(tmp_path, "text")
    path = artifact.directory / MANIFEST
    path.write_text(path.read_text()[:40])
    with pytest.raises(UserError, match=r"manifest.json is not a readable manifest"):
        Manifest.read(path)


def test_records_are_digested_in_the_provenance(tmp_path: Path) -> None:
    artifact = _publish(tmp_path, "text")
    provenance = json.loads((artifact.directory / "provenance.json").read_text())
    assert list(provenance["records"]) == ["records/seconds.txt"]
    assert list(artifact.manifest.payload) == ["payload.txt"]


def test_a_record_altered_behind_its_provenance_is_named_with_its_remedy(tmp_path: Path) -> None:
    artifact = _publish(tmp_path, "text")
    artifact.verify_record("records/seconds.txt")
    (artifact.directory / "records" / "seconds.txt").write_text("2")
    with pytest.raises(UserError, match=rf"does not match the sha256 in its provenance.*delete {artifact.directory}"):
        artifact.verify_record("records/seconds.txt")
    with pytest.raises(UserError, match=r"provenance\.json lists no records/minutes\.txt"):
        artifact.verify_record("records/minutes.txt")


def test_verify_finds_damaged_payloads_and_records(tmp_path: Path) -> None:
    artifact = _publish(tmp_path, "text")
    (name,) = verify(tmp_path / "results")
    assert verify(tmp_path / "results") == {name: []}
    for file in ("payload.txt", "records/seconds.txt"):
        (artifact.directory / file).write_text("altered")
    payload, record = verify(tmp_path / "results")[name]
    assert "payload.txt has 7 bytes where its manifest says 4" in payload
    assert "seconds.txt has 7 bytes where its provenance says 1" in record


@pytest.mark.parametrize(
    ("umask", "file_mode", "directory_mode"), [(0o22, 0o644, 0o755), (0o2, 0o664, 0o775), (0o77, 0o600, 0o700)]
)
def test_modes_of_published_files_follow_the_umask(
    tmp_path: Path, umask: int, file_mode: int, directory_mode: int
) -> None:
    previous = os.umask(umask)
    try:
        staging = tmp_path / "staging"
        (staging / "records" / "ranks").mkdir(parents=True)
        (staging / "model").mkdir(mode=0o700)
        save_file({"x": torch.zeros(1)}, staging / "model" / "model.safetensors")
        # The sticky bit of a group, as on a shared directory, is inherited and must not be lost.
        staging.chmod(0o2700 | staging.stat().st_mode)
        for name, mode in {
            "read-only.txt": 0o400,
            "model/program.txt": 0o755,
            "records/ranks/rank-0.log": 0o600,
        }.items():
            (staging / name).touch(mode=mode)
        (tmp_path / "corpus").mkdir()
        published = publish(
            staging, tmp_path / "corpus" / "a", stage="corpus", id="a", spec={}, parents={}, provenance=PROVENANCE
        )
    finally:
        os.umask(previous)
    published.verify()
    found = {path.relative_to(published.directory): path for path in published.directory.rglob("*")}
    assert {"manifest.json", "provenance.json", ".published.json", "model/model.safetensors"} <= set(map(str, found))
    modes = {str(name): path.stat().st_mode & 0o777 for name, path in found.items()}
    assert modes == {str(name): directory_mode if path.is_dir() else file_mode for name, path in found.items()}
    assert (published.directory / "model").stat().st_mode & stat.S_ISGID
    assert not any(name.startswith(".mode") for name in modes)
