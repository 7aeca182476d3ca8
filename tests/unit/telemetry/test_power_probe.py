"""The analysis of benchmarks/power.py recovers what a simulated sensor does."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def power(repository: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location("power", repository / "benchmarks" / "power.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


BURSTS = [(10.0 + 6 * i, 13.0 + 6 * i) for i in range(5)]


def _reported(update_s: float, window_s: float) -> tuple[np.ndarray, np.ndarray]:
    """A sensor that every `update_s` reports the mean power of the last `window_s`, between 100 W and 600 W."""
    fine = np.arange(0, 45, 0.001)
    load = np.full_like(fine, 100.0)
    for on, off in BURSTS:
        load[(fine >= on) & (fine < off)] = 600.0
    total = np.concatenate([[0], np.cumsum(load)])
    width = round(window_s / 0.001)
    index = np.arange(len(fine))
    mean = (total[index] - total[np.maximum(index - width, 0)]) / np.minimum(np.maximum(index, 1), width)
    times = np.arange(1, 44, update_s)
    return times, mean[np.round(times / 0.001).astype(int)]


@pytest.mark.parametrize("window_s", [0.2, 1.0])
def test_the_averaging_window_of_a_simulated_sensor_is_found(power: ModuleType, window_s: float) -> None:
    times, values = _reported(update_s=0.02, window_s=window_s)
    found = power.step_response(times, values, BURSTS)
    assert found["bursts"] == len(BURSTS) - 1
    assert found["step_w"] == pytest.approx(500, abs=10)
    assert found["averaging_window_s"] == pytest.approx(window_s, abs=0.05)
    assert found["delay_s"] == pytest.approx(window_s / 2, abs=0.04)


def test_the_update_period_is_the_time_between_changes(power: ModuleType) -> None:
    times = np.cumsum([0.1] * 40 + [0.3])
    found = power.update_period(times)
    assert found["median_s"] == pytest.approx(0.1)
    assert found["changes"] == 40


def test_a_sensor_that_does_not_move_has_no_window(power: ModuleType) -> None:
    times = np.arange(0, 45, 0.1)
    found = power.step_response(times, np.full_like(times, 100.0), BURSTS)
    assert found["averaging_window_s"] is None
