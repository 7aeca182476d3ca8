"""The command line as a shell sees it."""

import signal
import subprocess
import sys

import pytest

from effllm.cli import main
from tests.conftest import REPOSITORY

EFFLLM = [sys.executable, "-c", "from effllm.cli import main; main()"]


@pytest.mark.parametrize("command", [["schema"], ["check", "config/tiny.yaml"]])
def test_a_reader_that_goes_away_ends_it_quietly(command: list[str]) -> None:
    process = subprocess.Popen([*EFFLLM, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (141, b"")


def test_another_broken_pipe_is_not_taken_for_a_reader_that_has_gone() -> None:
    program = (
        "import effllm.cli as cli\n"
        "def run(arguments): raise BrokenPipeError(32, 'of a socket')\n"
        "cli._COMMANDS['schema'] = (lambda command: command.set_defaults(run=run), 'fail')\n"
        "cli.main(['schema'])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
    assert ended.returncode not in (0, 141) and "of a socket" in ended.stderr


def test_a_socket_that_breaks_ends_no_process(capsys: pytest.CaptureFixture[str]) -> None:
    """A hub that hangs up is an error to retry after; with the default of SIGPIPE it would be the end of `fetch`."""
    before = signal.getsignal(signal.SIGPIPE)
    with pytest.raises(SystemExit, match="0"):
        main(["schema", "results"])
    assert signal.getsignal(signal.SIGPIPE) is before is signal.SIG_IGN
    assert capsys.readouterr().out.startswith("{")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["init", "-o", "x.yaml", "--hours", "abc"], ["--hours 'abc'", "no number", "such as --hours 24"]),
        (["init", "-o", "x.yaml", "--gpus", "1.5"], ["--gpus '1.5'", "no whole number", "such as --gpus 1"]),
        (["init", "-o", "x.yaml", "--recipe", "int8"], ["--recipe 'int8'", "did you mean 'int4'?"]),
        (["init", "-o", "x.yaml", "--hours"], ["--hours: expected one argument", "effllm init --help"]),
        (["init", "--model", "x"], ["-o/--output", "effllm init --help"]),
        (["init", "-o", "x.yaml", "--hour\nly"], ["--hour ly", "effllm --help"]),
        (["plan", "--assume-power-w", "6OO"], ["--assume-power-w '6OO'", "such as --assume-power-w 600"]),
        (["plan", "--assume-mfu", "nan"], ["--assume-mfu nan", "above 0 and at most 1"]),
        (["plan", "--device-memory-gb", "inf"], ["--device-memory-gb inf", "above 0 and finite"]),
        (["recommend", "x.csv", "--margin", "5%"], ["--margin '5%'", "such as --margin 0.05"]),
        (["schema", "studies"], ["effllm schema: 'studies'", "did you mean 'study'?"]),
        (["show", str(REPOSITORY / "README.md")], ["README.md is not readable CSV", "such as results/table9.csv"]),
        (["plam"], ["invalid choice: 'plam'", "effllm --help"]),
    ],
)
def test_options_of_no_meaning_are_answered_in_one_sentence(
    words: list[str], named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1
    assert all(part in said for part in named), said
