"""A program that is started collects no garbage among its imports, and does afterwards."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import gc, sys
during = gc.isenabled()
from effllm.runtime.start import libraries_imported
libraries_imported()
print(__name__, sys.argv[1:], during, gc.isenabled(), gc.get_freeze_count() > 0)
"""


def test_imports_are_not_collected_and_the_program_is_itself(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "effllm.runtime.start", "program", "--spec", "x"]
    environment = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}", "PATH": ""}
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert ended.stdout == "__main__ ['--spec', 'x'] False True True\n"


def test_an_exit_code_is_the_programs(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("raise SystemExit(75)")
    environment = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[3]}", "PATH": ""}
    command = [sys.executable, "-m", "effllm.runtime.start", "program"]
    assert subprocess.run(command, env=environment, check=False).returncode == 75
