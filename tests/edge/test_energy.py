"""Energy: counters that begin again, power that is integrated, batteries, and a reason where nothing is told."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from system_tree import write_tree

from tinyedge.machine.energy import EnergyMeter, find_source
from tinyedge.machine.energy_mac import PowerMetrics

RAPL = "sys/class/powercap"
CHIP = "sys/class/hwmon/hwmon2"
BATTERY = "sys/class/power_supply/BAT0"

PACKAGE = {
    f"{RAPL}/intel-rapl:0/name": "package-0",
    f"{RAPL}/intel-rapl:0/energy_uj": "1000000",
    f"{RAPL}/intel-rapl:0/max_energy_range_uj": "262143328850",
    f"{RAPL}/intel-rapl:0:0/name": "core",
    f"{RAPL}/intel-rapl:0:0/energy_uj": "900000",
    f"{RAPL}/intel-rapl:0:2/name": "dram",
    f"{RAPL}/intel-rapl:0:2/energy_uj": "50000",
    f"{RAPL}/intel-rapl:0:2/max_energy_range_uj": "65712999613",
    f"{RAPL}/intel-rapl:1/name": "psys",
    f"{RAPL}/intel-rapl:1/energy_uj": "7000000",
    f"{RAPL}/intel-rapl-mmio:0/name": "package-0",
    f"{RAPL}/intel-rapl-mmio:0/energy_uj": "1000000",
}


def test_the_package_and_the_memory_count_and_parts_of_the_package_do_not(tmp_path: Path) -> None:
    write_tree(tmp_path, PACKAGE)
    with EnergyMeter(tmp_path, interval_s=10) as meter:
        changed = {"0/energy_uj": "4500000", "0:0/energy_uj": "4000000", "0:2/energy_uj": "550000", "1/energy_uj": "9900000"}
        write_tree(tmp_path, {f"{RAPL}/intel-rapl:{name}": text for name, text in changed.items()})
    used = meter.used
    assert used is not None and used.joules == pytest.approx(4.0)
    assert (used.source, used.reason) == ("RAPL (processor and memory)", "")
    assert used.per_token(8) == pytest.approx(0.5)
    assert used.watts == pytest.approx(4.0 / used.seconds)


def test_a_counter_that_began_again_is_followed(tmp_path: Path) -> None:
    counter = f"{RAPL}/intel-rapl:0/energy_uj"
    write_tree(tmp_path, {f"{RAPL}/intel-rapl:0/name": "package-0", f"{RAPL}/intel-rapl:0/max_energy_range_uj": "10000000"})
    write_tree(tmp_path, {counter: "9000000"})
    meter = EnergyMeter(tmp_path, interval_s=0.01)
    meter.start()
    for value in ("1500000", "9500000", "500000"):  # it wraps twice
        write_tree(tmp_path, {counter: value})
        time.sleep(0.1)
    assert meter.stop().joules == pytest.approx(2.5 + 8.0 + 1.0)


def test_counters_that_only_root_may_read_are_explained(tmp_path: Path) -> None:
    write_tree(tmp_path, PACKAGE)
    if os.getuid() == 0:  # root may read any file: the same happens with one that cannot be read as a number
        write_tree(tmp_path, {f"{RAPL}/intel-rapl:0/energy_uj": ""})
    else:
        (tmp_path / f"{RAPL}/intel-rapl:0/energy_uj").chmod(0)
    with EnergyMeter(tmp_path) as meter:
        pass
    used = meter.used
    assert used is not None and used.joules is None and used.per_token(3) is None and used.watts is None
    assert "root" in used.reason and "sudo chmod a+r /sys/class/powercap" in used.reason


def test_a_jetsons_input_power_is_integrated(tmp_path: Path) -> None:
    files = {
        f"{CHIP}/name": "ina3221",
        f"{CHIP}/in1_label": "VDD_IN",
        f"{CHIP}/in1_input": "5000",
        f"{CHIP}/curr1_input": "1200",
        f"{CHIP}/in2_label": "VDD_CPU_GPU_CV",
        f"{CHIP}/in2_input": "5000",
        f"{CHIP}/curr2_input": "600",
    }
    meter = EnergyMeter(write_tree(tmp_path, files), interval_s=0.02)
    meter.start()
    time.sleep(0.2)
    used = meter.stop()
    assert used.source == "hwmon ina3221"
    assert used.watts == pytest.approx(6.0, rel=0.02)


def test_power_that_changes_is_integrated_over_time(tmp_path: Path) -> None:
    write_tree(tmp_path, {f"{CHIP}/name": "ina226", f"{CHIP}/power1_input": "2000000"})
    meter = EnergyMeter(tmp_path, interval_s=0.01)
    meter.start()
    time.sleep(0.3)
    write_tree(tmp_path, {f"{CHIP}/power1_input": "6000000"})
    time.sleep(0.3)
    used = meter.stop()
    assert used.joules == pytest.approx(0.3 * 2 + 0.3 * 6, rel=0.15)


@pytest.mark.parametrize(
    ("files", "source"),
    [
        ({"name": "amdgpu", "power1_average": "9000000"}, None),  # the GPU's alone
        ({"name": "xe", "energy1_input": "9000000"}, None),
        ({"name": "ina3221", "in1_label": "rail", "in1_input": "5000", "curr1_input": "10"}, None),  # one rail of several
        ({"name": "pmbus", "power1_input": "1", "power2_input": "2"}, None),  # they may overlap
        (
            {"name": "macsmc_hwmon", "power1_label": "Total System Power", "power1_input": "1", "power2_input": "2"},
            "macsmc_hwmon",
        ),
        ({"name": "amd_energy", "energy1_label": "Ecore000", "energy1_input": "1"}, "amd_energy"),
        ({"name": "scmi_sensors", "energy1_input": "5"}, "scmi_sensors"),
    ],
)
def test_only_sensors_of_the_board_or_the_processor_count(tmp_path: Path, files: dict[str, str], source: str | None) -> None:
    found, reason = find_source(write_tree(tmp_path, {f"{CHIP}/{name}": text for name, text in files.items()}))
    assert (found.name if found else None) == (f"hwmon {source}" if source else None)
    assert bool(reason) == (found is None)


def test_the_sockets_of_a_server_are_added_and_their_cores_not_counted_twice(tmp_path: Path) -> None:
    labels = ("Ecore000", "Ecore001", "Esocket0", "Esocket1")
    for number, label in enumerate(labels):
        write_tree(tmp_path, {f"{CHIP}/energy{number}_label": label, f"{CHIP}/energy{number}_input": "0"})
    write_tree(tmp_path, {f"{CHIP}/name": "amd_energy"})
    with EnergyMeter(tmp_path, interval_s=10) as meter:
        write_tree(tmp_path, {f"{CHIP}/energy{number}_input": "3000000" for number in range(4)})
    assert meter.used is not None and meter.used.joules == pytest.approx(6.0)


@pytest.mark.parametrize(
    "files", [{"power_now": "12000000"}, {"power_now": "-12000000"}, {"current_now": "1000000", "voltage_now": "12000000"}]
)
def test_a_battery_tells_while_it_is_discharged(tmp_path: Path, files: dict[str, str]) -> None:
    told = {"type": "Battery", "status": "Discharging", **files}
    meter = EnergyMeter(write_tree(tmp_path, {f"{BATTERY}/{name}": text for name, text in told.items()}), interval_s=0.02)
    meter.start()
    time.sleep(0.1)
    used = meter.stop()
    assert used.watts == pytest.approx(12.0, rel=0.02)
    assert "battery" in used.source
    write_tree(tmp_path, {f"{BATTERY}/status": "Charging"})
    assert find_source(tmp_path)[0] is None


def test_a_machine_that_tells_nothing_says_so(tmp_path: Path) -> None:
    with EnergyMeter(tmp_path) as meter:
        pass
    assert meter.used is not None and meter.used.joules is None
    assert "tells no energy or power" in meter.used.reason


def test_a_counter_that_goes_away_is_no_error(tmp_path: Path) -> None:
    write_tree(tmp_path, PACKAGE)
    with EnergyMeter(tmp_path, interval_s=10) as meter:
        for name in ("0/energy_uj", "0:2/energy_uj"):
            (tmp_path / f"{RAPL}/intel-rapl:{name}").unlink()
    assert meter.used is not None and meter.used.joules == 0.0


def sudo(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "sudo"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_powermetrics_is_used_where_sudo_does_not_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "echo 'CPU Power: 900 mW'; echo 'Combined Power (CPU + GPU + ANE): 4000 mW'"
    sudo(tmp_path, f'[ "$2" = -l ] && exit 0\nwhile true; do {lines}; sleep 0.05; done', monkeypatch)
    source, reason = PowerMetrics.open()
    assert source is not None and reason == ""
    source.look()
    time.sleep(0.4)
    source.look()
    joules = source.joules()
    source.close()
    assert joules == pytest.approx(4.0 * 0.4, rel=0.3)
    source._process.wait(timeout=5)  # it ends once nobody reads it


@pytest.mark.parametrize("body", ["exit 1", "exec no-such-program"])
def test_powermetrics_is_left_alone_where_sudo_asks(tmp_path: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sudo(tmp_path, body, monkeypatch)
    source, reason = PowerMetrics.open()
    assert source is None and "sudo -v" in reason


def test_a_sudo_that_lists_but_does_not_run_it_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sudo(tmp_path, '[ "$2" = -l ] && exit 0\necho "sudo: a password is required" >&2; exit 1', monkeypatch)
    source, _ = PowerMetrics.open()
    assert source is not None
    source._process.wait(timeout=5)
    assert source.joules() is None and "sudo -v" in source.complaint
    source.close()
