"""Commands in the documents: what they are said to print is what they print."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from effllm.cli import main
from tests.conftest import REPOSITORY

_PROMPT = "    $ effllm recommend "


def examples() -> Iterator[tuple[str, str, list[str]]]:
    """Document, command and the lines below it that are indented as it is; `...` stands for any lines."""
    for path in (REPOSITORY / "README.md", REPOSITORY / "docs" / "answers.md"):
        lines = path.read_text().splitlines()
        for start, line in enumerate(lines):
            if line.startswith(_PROMPT):
                end = start + 1
                while end < len(lines) and (lines[end].startswith("    ") or not lines[end]):
                    end += 1
                printed = [text.removeprefix("    ") for text in lines[start + 1 : end]]
                yield path.name, line.removeprefix(_PROMPT), printed


EXAMPLES = list(examples())


def test_the_documents_show_commands() -> None:
    assert {name for name, _, _ in EXAMPLES} == {"README.md", "answers.md"}


@pytest.mark.parametrize(("document", "command", "printed"), EXAMPLES, ids=[f"{d}: {c}" for d, c, _ in EXAMPLES])
def test_the_documents_show_what_is_printed(
    document: str, command: str, printed: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert Path("docs/results").is_dir(), document
    with pytest.raises(SystemExit):
        main(["recommend", *shlex.split(command)])
    expected = "\n".join(printed).strip("\n")
    pattern = re.escape(expected).replace(re.escape("\n..."), r"(\n.*)*")
    assert re.fullmatch(pattern, capsys.readouterr().out.strip("\n")), expected


def test_a_recommendation_imports_no_large_library() -> None:
    """Start-up is most of what the command costs."""
    script = (
        "import sys; from effllm.cli import main\n"
        "try: main(['recommend', 'docs/results/h100/table9.csv', '--json'])\n"
        "except SystemExit: pass\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    loaded = set(done.stderr.split())
    assert "effllm" in loaded
    # Pydantic is there: a quantization method says which of its settings are columns.
    assert not loaded & {"torch", "transformers", "numpy", "polars", "scipy", "pyarrow", "snakemake"}


def test_decisions_need_neither_torch_nor_snakemake() -> None:
    script = (
        "import importlib, pkgutil, sys, effllm.decision as package\n"
        "for module in pkgutil.iter_modules(package.__path__):\n"
        "    importlib.import_module(f'effllm.decision.{module.name}')\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    loaded = set(done.stdout.split())
    assert "effllm" in loaded
    assert not loaded & {"torch", "transformers", "polars", "snakemake"}
