"""Progress: a line now and then where there is no terminal."""

import time

import pytest

from effllm.runtime.progress import LINE_INTERVAL_S, Progress, progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_lines_come_at_most_once_an_interval_with_count_share_and_rate(clock, capsys):
    with Progress(4000, unit="documents", label="sampling") as bar:
        for _ in range(25):
            clock[0] += LINE_INTERVAL_S / 10
            bar.update(100)
    assert capsys.readouterr().out.splitlines() == [
        "progress: sampling: 1,000/4,000 (25%) documents, 100.0/s",
        "progress: sampling: 2,000/4,000 (50%) documents, 100.0/s",
    ]


def test_without_a_total_the_count_stands_alone(clock, capsys):
    items = []
    for item in progress(range(3), unit="steps", label="training"):
        clock[0] += LINE_INTERVAL_S
        items.append(item)
    assert items == [0, 1, 2]
    assert capsys.readouterr().out.splitlines()[-1] == "progress: training: 3 steps, 0.1/s"


def test_on_a_terminal_a_bar_is_drawn_on_standard_error(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(progress("ab", total=2, unit="letters", label="spelling")) == ["a", "b"]
    captured = capsys.readouterr()
    assert "spelling: 100%" in captured.err and "2/2" in captured.err and not captured.out
