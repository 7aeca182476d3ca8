"""The ways to install the project agree."""

from pathlib import Path

import pytest
import yaml


def _pins(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def test_environment_yml_holds_the_pins_of_the_requirements(repository: Path) -> None:
    environment = yaml.safe_load((repository / "environment.yml").read_text())
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert pip == _pins(repository / "requirements.txt") + _pins(repository / "requirements-dev.txt")


def test_every_direct_dependency_is_pinned_and_explained(repository: Path) -> None:
    explained = (repository / "docs" / "dependencies.md").read_text()
    for pin in _pins(repository / "requirements.txt") + _pins(repository / "requirements-dev.txt"):
        name, separator, version = pin.partition("==")
        assert separator and version, f"{pin} is not pinned"
        assert f"`{name.partition('[')[0]}`" in explained, f"docs/dependencies.md does not explain {name}"


@pytest.mark.parametrize(
    "requirements", ["requirements-gpu.txt", "requirements-inception.txt", "requirements-test-model.txt"]
)
def test_what_is_optional_is_pinned_and_explained_and_agrees_with_the_constraints(
    repository: Path, requirements: str
) -> None:
    explained = (repository / "docs" / "dependencies.md").read_text()
    constraints = dict(line.split("==") for line in _pins(repository / "constraints.txt"))
    for pin in _pins(repository / requirements):
        name, separator, version = pin.partition("==")
        assert separator and f"`{name}`" in explained
        assert constraints.get(name, version) == version


def test_constraints_hold_the_direct_pins(repository: Path) -> None:
    constraints = {line.lower().replace("_", "-") for line in _pins(repository / "constraints.txt")}
    for pin in _pins(repository / "requirements.txt") + _pins(repository / "requirements-dev.txt"):
        name, _, version = pin.partition("==")
        assert f"{name.partition('[')[0]}=={version}".lower() in constraints


def test_no_file_is_too_long_to_read(repository: Path) -> None:
    long = {
        str(path.relative_to(repository)): lines
        for folder in ("effllm", "rules", "workflow_scripts")
        for path in (repository / folder).rglob("*.*")
        if path.suffix in (".py", ".smk") and (lines := len(path.read_text().splitlines())) > 400
    }
    assert long == {}
    assert len((repository / "Snakefile").read_text().splitlines()) < 60
