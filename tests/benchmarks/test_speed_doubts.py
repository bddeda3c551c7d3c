"""Warnings come when they should and are rare when nothing is wrong; a hot board is waited for."""

from __future__ import annotations

import random
import threading
import time
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from system_tree import write_tree

from tinyedge_bench.speed.conditions import Sensors, clocks, held_back, joules_per_token, temperatures, throttled
from tinyedge_bench.speed.cooling import Cooling
from tinyedge_bench.speed.doubts import doubts, drift, outliers

STEADY = (100.0, 101.0, 100.4, 99.6, 100.8, 99.9)


def test_steady_runs_get_no_warning() -> None:
    assert doubts("tg128", STEADY) == ()


def test_few_runs_and_noise_are_said_each_with_a_hint() -> None:
    assert "fewer than 3 runs cannot tell the spread; use -r 5 or more" in doubts("tg128", (100.0, 90.0))[0]
    (noise,) = doubts("tg128", (90.0, 100.0, 110.0))
    assert noise == "tg128: runs differ by 20% (90.0 to 110.0); close other programs and let it cool"


def test_a_run_far_from_the_others_is_an_outlier() -> None:
    samples = (60.0, 61.0, 62.0, 61.5, 5.0)
    assert outliers(samples) == (5.0,)
    (said,) = doubts("tg128", samples)
    assert said.startswith("tg128: 1 of 5 runs is far from the others (5.0, median 61.0 tokens/s); close other programs")
    two = doubts("tg128", (5.0, *samples, 61.4))[0]
    assert two.startswith("tg128: 2 of 7 runs are far from the others (5.0, 5.0, median 61.0 ")


def test_outliers_are_those_of_the_modified_z_score() -> None:
    """The rule as NIST/SEMATECH 1.3.5.17 words it, on random runs, some of them disturbed."""
    draw = random.Random(1)
    for _ in range(200):
        samples = [draw.gauss(100, 1) - (draw.random() < 0.1) * draw.uniform(0, 40) for _ in range(draw.randint(5, 12))]
        middle = float(np.median(samples))
        mad = float(np.median(np.abs(np.array(samples) - middle)))
        scored = [value for value in samples if 0.6745 * abs(value - middle) / mad > 3.5]
        assert list(outliers(samples)) == [value for value in scored if abs(value - middle) > 0.02 * middle]


def test_runs_that_become_slower_are_a_drift_and_the_hint_is_to_cool() -> None:
    falling = (100.0, 97.0, 94.0, 91.0, 88.0)
    assert drift(falling) == pytest.approx(89.5 / 98.5 - 1)
    (said,) = doubts("pp512", falling)
    assert said.startswith("pp512: the runs got slower by 9% from first to last; let the machine cool")
    assert "faster" in doubts("pp512", falling[::-1])[0]
    assert drift((100.0, 99.9, 99.8, 99.7, 99.6)) == 0.0, "regular, and not worth a word"


@pytest.mark.parametrize("count", [5, 6, 7])
def test_of_all_orders_of_the_runs_at_most_a_twentieth_is_called_a_drift(count: int) -> None:
    values = [100.0 + 10 * index for index in range(count)]
    called = [bool(drift(order)) for order in permutations(values)]
    assert 0 < sum(called) / len(called) <= 0.05


BOARD = {
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "71000",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "40004",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "900000",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1500000",
    "sys/class/hwmon/hwmon0/name": "ina3221",
    "sys/class/hwmon/hwmon0/power1_input": "5000000",
    "sys/class/hwmon/hwmon0/power1_label": "VDD_IN",
}


def test_heat_clock_throttling_and_energy_come_from_the_boards_files(tmp_path: Path) -> None:
    sensors = Sensors(write_tree(tmp_path, BOARD), (0,))

    def run() -> str:
        write_tree(tmp_path, {"sys/class/thermal/thermal_zone0/temp": "74000"})
        time.sleep(0.3)
        return "done"

    result, first = sensors.during(run)
    _, second = sensors.during(lambda: time.sleep(0.3))
    seen = [first, second]
    assert result == "done"
    assert temperatures(seen) == [71.0, 74.0, 74.0]
    assert clocks(seen) == [900.0, 900.0, 900.0]
    assert throttled(seen) == ["throttled"]
    assert "the machine was held back during the run at up to 74 °C: throttled" in held_back(seen)
    joules, source = joules_per_token(seen, 10)
    assert joules == pytest.approx(5 * 0.3 / 10, rel=0.2)
    assert source == "hwmon ina3221"
    (said,) = doubts("tg128", STEADY, held_back(seen))
    assert "held back" in said
    assert "--cool" in said


def test_a_machine_that_tells_nothing_gives_nothing_and_the_reason(tmp_path: Path) -> None:
    _, seen = Sensors(tmp_path, (0,)).during(lambda: None)
    assert (temperatures([seen]), clocks([seen]), throttled([seen]), held_back([seen])) == (None, None, [], "")
    joules, note = joules_per_token([seen], 10)
    assert joules is None
    assert "no power sensor" in note


@pytest.mark.parametrize(
    ("text", "cooling"),
    [("20", Cooling(seconds=20)), ("0.5s", Cooling(seconds=0.5)), ("55C", Cooling(degrees=55)), ("55 °C", Cooling(degrees=55))],
)
def test_cool_takes_seconds_and_temperatures(text: str, cooling: Cooling) -> None:
    assert Cooling.parse(text) == cooling


@pytest.mark.parametrize("text", ["", "x", "-1", "700", "5C", "200C", "1e3", "nan", "20 F"])
def test_cool_refuses_what_cannot_be_waited_for(text: str) -> None:
    with pytest.raises(ValueError, match="it takes"):
        Cooling.parse(text)


def _heat(root: Path, degrees: int) -> Path:
    return write_tree(root, BOARD | {"sys/class/thermal/thermal_zone0/temp": str(degrees * 1000)})


def test_a_hot_board_is_waited_for_until_it_has_cooled(tmp_path: Path) -> None:
    _heat(tmp_path, 70)
    cooled = threading.Timer(0.3, _heat, (tmp_path, 44))
    cooled.start()
    said: list[str] = []
    Cooling(degrees=45).wait(said.append, tmp_path)
    assert cooled.finished.is_set()
    assert said == ["waiting until it has cooled from 70 °C to 45 °C"]
    Cooling(degrees=45).wait(said.append, tmp_path)
    assert len(said) == 1, "a cool board is not waited for"


def test_a_board_that_stays_hot_is_not_waited_for_without_end(tmp_path: Path) -> None:
    said: list[str] = []
    Cooling(degrees=45).wait(said.append, _heat(tmp_path, 70), longest_s=0.1)
    assert "still at 70 °C" in said[-1]


def test_without_a_sensor_it_says_so_and_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    Cooling(degrees=45).wait(said.append, tmp_path)
    assert "tells no temperature" in said[0]
