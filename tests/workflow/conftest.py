"""Runs of the real workflow on the cut-down study."""

import copy
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY, SNAKEMAKE, cut_down, run_snakemake

LOCAL = ["--profile", "profiles/local", "--cores", "2"]


class Workdir:
    """A directory with a study in it and the results of the workflow below it."""

    def __init__(self, path: Path, study: dict[str, Any]):
        self.path = path
        self.study = study
        self.write()

    def write(self) -> None:
        """Write the study as it is now."""
        (self.path / "study.yaml").write_text(yaml.safe_dump(self.study))

    def arguments(self, *targets: str, options: Sequence[str] = ()) -> list[str]:
        """The command line after `snakemake --directory DIR`: the local profile with this study in its place."""
        return [*LOCAL, *options, "--config", f"study={self.path / 'study.yaml'}", "--", *targets]

    def snakemake(self, *targets: str, options: Sequence[str] = (), check: bool = True) -> Any:
        """Run snakemake to the end."""
        return run_snakemake(self.path, *self.arguments(*targets, options=options), check=check)

    def start(self, *targets: str) -> subprocess.Popen[bytes]:
        """Start snakemake as a terminal would, in a process group of its own, to be killed."""
        command = [*SNAKEMAKE, "--directory", str(self.path), *self.arguments(*targets)]
        return subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def planned(self, *targets: str) -> set[str]:
        """What a dry run would build, as `<stage>/<id>` or `<table>.csv`."""
        output = self.snakemake(*(targets or ("all",)), options=["--summary"]).stdout
        rows = [line.split("\t") for line in output.splitlines() if line.startswith("results/")]
        assert rows, "a summary lists every node"
        pending = [row[0] for row in rows if row[-1] == "update pending"]
        return {name.removeprefix("results/").removesuffix("/manifest.json") for name in pending}


@pytest.fixture
def workdir(micro: dict[str, Any], tmp_path: Path) -> Workdir:
    """An empty working directory with the cut-down study."""
    return Workdir(tmp_path, micro)


@pytest.fixture(scope="module")
def finished(tiny_text: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    """A working directory in which every table of the cut-down study has been built."""
    workdir = Workdir(tmp_path_factory.mktemp("finished"), cut_down(tiny_text))
    workdir.snakemake("all")
    return workdir


@pytest.fixture
def edited(finished: Workdir) -> Callable[..., set[str]]:
    """Plan a run after an edit of the study, and put the study back."""

    def plan(edit: Callable[[dict[str, Any]], None]) -> set[str]:
        original = finished.study
        finished.study = copy.deepcopy(original)
        try:
            edit(finished.study)
            finished.write()
            return finished.planned()
        finally:
            finished.study = original
            finished.write()

    return plan
