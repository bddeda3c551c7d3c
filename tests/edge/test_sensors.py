"""The state of a machine is read as its kernel, firmware and battery write it, for layouts copied from real ones."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from system_tree import write_tree

from tinyedge.machine.sensors import (
    Clock,
    Power,
    Sensors,
    Throttling,
    linux_sensors,
    mac_power,
    mac_throttling,
    pi_throttling,
    read_sensors,
)
from tinyedge.machine.throttle_watch import RunConditions, ThrottleWatch

CPUS = "sys/devices/system/cpu"
FLAGS = "sys/devices/platform/soc/soc:firmware/get_throttled"
ZONE = "sys/class/thermal/thermal_zone0"

PI_4 = {
    f"{ZONE}/type": "cpu-thermal",
    f"{ZONE}/temp": "54017",
    "sys/class/hwmon/hwmon0/name": "cpu_thermal",
    "sys/class/hwmon/hwmon0/temp1_input": "54017",
    "sys/class/hwmon/hwmon1/name": "rpi_volt",
    "sys/class/hwmon/hwmon1/in0_lcrit_alarm": "0",
    FLAGS: "50005",
    **{f"{CPUS}/cpu{n}/cpufreq/scaling_governor": "ondemand" for n in range(4)},
    **{f"{CPUS}/cpu{n}/cpufreq/scaling_cur_freq": "600000" for n in range(4)},
    **{f"{CPUS}/cpu{n}/cpufreq/scaling_max_freq": "1500000" for n in range(4)},
    **{f"{CPUS}/cpu{n}/cpufreq/cpuinfo_max_freq": "1800000" for n in range(4)},
}
LAPTOP = {
    "sys/class/hwmon/hwmon0/name": "nvme",
    "sys/class/hwmon/hwmon0/temp1_input": "71850",
    "sys/class/hwmon/hwmon3/name": "coretemp",
    "sys/class/hwmon/hwmon3/temp1_input": "48000",
    "sys/class/hwmon/hwmon3/temp2_input": "51000",
    f"{ZONE}/type": "INT3400 Thermal",
    f"{ZONE}/temp": "20000",
    f"{CPUS}/cpu0/thermal_throttle/core_throttle_count": "0",
    f"{CPUS}/cpu1/thermal_throttle/core_throttle_count": "17",
    f"{CPUS}/cpu1/thermal_throttle/package_throttle_count": "12",
    f"{CPUS}/cpu0/cpufreq/scaling_governor": "powersave",
    f"{CPUS}/cpu1/cpufreq/scaling_governor": "powersave",
    f"{CPUS}/cpu1/cpufreq/scaling_cur_freq": "3100000",
    f"{CPUS}/cpu1/cpufreq/cpuinfo_max_freq": "4700000",
    f"{CPUS}/cpu1/cpufreq/base_frequency": "2100000",
    "sys/class/power_supply/AC/type": "Mains",
    "sys/class/power_supply/AC/online": "0",
    "sys/class/power_supply/BAT0/type": "Battery",
    "sys/class/power_supply/BAT0/status": "Discharging",
    "sys/class/power_supply/BAT0/capacity": "83",
    "sys/class/power_supply/hidpp_battery_0/type": "Battery",
    "sys/class/power_supply/hidpp_battery_0/scope": "Device",
    "sys/class/power_supply/hidpp_battery_0/capacity": "5",
}


def test_a_raspberry_pi_tells_heat_flags_and_clock(tmp_path: Path) -> None:
    assert linux_sensors(write_tree(tmp_path, PI_4), range(4)) == Sensors(
        temperature_c=54.017,
        throttling=Throttling(now=("under-voltage", "throttled"), since_boot=("under-voltage", "throttled")),
        governors=("ondemand",),
        clock=Clock(now=600.0, limit=1500.0, maximum=1800.0),
    )


def test_a_laptop_tells_its_cores_heat_not_the_disks_and_its_battery_not_the_mouses(tmp_path: Path) -> None:
    assert linux_sensors(write_tree(tmp_path, LAPTOP), range(2)) == Sensors(
        temperature_c=51.0,
        throttling=Throttling(since_boot=("slowed for heat",), events=17),
        governors=("powersave",),
        clock=Clock(now=3100.0, maximum=4700.0, base=2100.0),
        power=Power("battery", 83),
    )


def test_a_machine_that_tells_nothing_has_nothing(tmp_path: Path) -> None:
    assert linux_sensors(tmp_path, range(8)) == Sensors()


def test_the_flags_are_found_where_a_pi_5_has_them(tmp_path: Path) -> None:
    write_tree(tmp_path, {"sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled": "0xe0000"})
    assert pi_throttling(tmp_path) == Throttling(since_boot=("clock capped", "throttled", "soft temperature limit"))


@pytest.mark.parametrize(("alarm", "now"), [("0", ()), ("1", ("under-voltage",))])
def test_with_a_mainline_kernel_only_the_voltage_is_told(tmp_path: Path, alarm: str, now: tuple[str, ...]) -> None:
    files = {name: text for name, text in PI_4.items() if name != FLAGS}
    write_tree(tmp_path, files | {"sys/class/hwmon/hwmon1/in0_lcrit_alarm": alarm})
    assert linux_sensors(tmp_path, ()).throttling == Throttling(now=now)


@pytest.mark.parametrize("text", ["", "-1", "no", "0x", "123456789"])
def test_flags_that_make_no_sense_are_none(tmp_path: Path, text: str) -> None:
    assert pi_throttling(write_tree(tmp_path, {FLAGS: text})) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the firmware of a board")
def test_without_the_file_the_firmwares_program_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if list(Path("/").glob(FLAGS)):
        pytest.skip("this is a Raspberry Pi")
    program = tmp_path / "vcgencmd"
    program.write_text('#!/bin/sh\n[ "$1" = get_throttled ] && echo throttled=0x20002\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert pi_throttling(Path("/")) == Throttling(now=("clock capped",), since_boot=("clock capped",))
    program.write_text("#!/bin/sh\nexit 1\n")
    assert pi_throttling(Path("/")) is None


@pytest.mark.parametrize(
    ("temperatures", "found"),
    [
        ({"acpitz": "27800"}, 27.8),
        ({"gpu-thermal": "60000", "bigcore0-thermal": "51000", "soc-thermal": "50000"}, 51.0),
        ({"cpu-thermal": "-274000", "battery": "30000"}, 30.0),  # a sensor that is not connected
        ({"cpu-thermal": "garbage"}, None),
        ({"cpu-thermal": ""}, None),
        ({"cpu-thermal": "9" * 40}, None),
    ],
)
def test_the_hottest_zone_of_the_processor_counts(tmp_path: Path, temperatures: dict[str, str], found: float | None) -> None:
    for number, (kind, text) in enumerate(temperatures.items()):
        folder = f"sys/class/thermal/thermal_zone{number}"
        write_tree(tmp_path, {f"{folder}/type": kind, f"{folder}/temp": text})
    assert linux_sensors(tmp_path, ()).temperature_c == found


@pytest.mark.parametrize(
    ("supplies", "found"),
    [
        ({"AC": ("Mains", "online", "1")}, Power("mains")),
        ({"AC": ("Mains", "online", "0")}, None),
        ({"BAT0": ("Battery", "status", "Full")}, Power("mains")),
        ({"BAT0": ("Battery", "status", "Discharging")}, Power("battery")),
        ({"BAT0": ("Battery", "status", "Discharging"), "AC": ("Mains", "online", "1")}, Power("mains")),
        ({"BAT0": ("Battery", "status", "Charging"), "ucsi": ("USB", "online", "1")}, Power("mains")),
    ],
)
def test_the_power_comes_from_mains_or_battery(
    tmp_path: Path, supplies: dict[str, tuple[str, str, str]], found: Power | None
) -> None:
    for name, (kind, key, value) in supplies.items():
        write_tree(tmp_path, {f"sys/class/power_supply/{name}/type": kind, f"sys/class/power_supply/{name}/{key}": value})
    assert linux_sensors(tmp_path, ()).power == found


@pytest.mark.parametrize(
    ("files", "slow"),
    [
        ({"cpufreq/cpuinfo_max_freq": "2400000", "cpufreq/scaling_driver": "cpufreq-dt"}, 1800.0),
        ({"cpufreq/cpuinfo_max_freq": "4700000", "cpufreq/scaling_driver": "intel_pstate"}, 2350.0),
        ({"cpufreq/cpuinfo_max_freq": "4700000", "cpufreq/base_frequency": "2100000"}, 1995.0),
        ({"cpufreq/cpuinfo_max_freq": "5100000", "acpi_cppc/nominal_freq": "3800"}, 3610.0),
        ({}, None),
    ],
)
def test_what_counts_as_slow_follows_from_what_the_processor_can_keep_up(
    tmp_path: Path, files: dict[str, str], slow: float | None
) -> None:
    write_tree(tmp_path, {f"{CPUS}/cpu0/{name}": text for name, text in files.items()})
    assert linux_sensors(tmp_path, (0,)).clock.slow == (None if slow is None else pytest.approx(slow))


def test_a_mac_tells_its_battery_and_its_speed_limit() -> None:
    text = (
        "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=4522083)\t85%; discharging; 6:02 remaining present: true\n"
    )
    assert mac_power(text) == Power("battery", 85)
    assert mac_power("Now drawing from 'AC Power'\n") == Power("mains")
    assert mac_power("") is None
    assert mac_throttling("CPU_Scheduler_Limit \t= 100\n\tCPU_Speed_Limit \t= 70\n") == Throttling(
        now=("slowed for heat to 70%",)
    )
    assert mac_throttling("\tCPU_Speed_Limit \t= 100\n") == Throttling()
    assert mac_throttling("Note: No thermal warning level has been recorded\n") is None


def test_this_machines_sensors_can_be_read() -> None:
    found = read_sensors((0,))
    assert found.temperature_c is None or -40 <= found.temperature_c <= 150


def test_a_run_notes_the_flags_that_were_set_during_it(tmp_path: Path) -> None:
    write_tree(tmp_path, PI_4 | {FLAGS: "10000"})
    with ThrottleWatch(tmp_path, (0, 1), interval_s=0.02) as watch:
        write_tree(tmp_path, {FLAGS: "60002", f"{ZONE}/temp": "81000", "sys/class/hwmon/hwmon0/temp1_input": "81000"})
        time.sleep(0.2)
        write_tree(tmp_path, {FLAGS: "70000", f"{ZONE}/temp": "70000", "sys/class/hwmon/hwmon0/temp1_input": "70000"})
    seen = watch.seen
    assert seen is not None
    assert set(seen.flags) == {"clock capped", "throttled"}  # the under-voltage was noted before the run
    assert (seen.temperature_start_c, seen.temperature_max_c, seen.temperature_end_c) == (54.017, 81.0, 70.0)
    assert seen.throttled
    assert "at up to 81 °C" in seen.note and "clock capped" in seen.note


def test_a_clock_that_falls_under_load_is_noted(tmp_path: Path) -> None:
    quiet = {FLAGS: "0", f"{CPUS}/cpu0/cpufreq/scaling_cur_freq": "1800000"}
    write_tree(tmp_path, PI_4 | quiet)
    watch = ThrottleWatch(tmp_path, (0,), interval_s=0.02)
    watch.start()
    time.sleep(0.1)
    write_tree(tmp_path, {f"{CPUS}/cpu0/cpufreq/scaling_cur_freq": "1000000"})
    time.sleep(0.1)
    seen = watch.stop()
    assert (seen.clock_lowest_mhz, seen.clock_highest_mhz, seen.clock_expected_mhz) == (1000.0, 1800.0, 1350.0)
    assert seen.flags == () and seen.slow_clock
    assert "the clock fell to 1000 MHz (1350 expected, governor ondemand)" in seen.note


def test_an_x86_processor_counts_how_often_it_was_slowed(tmp_path: Path) -> None:
    write_tree(tmp_path, LAPTOP)
    with ThrottleWatch(tmp_path, (0, 1), interval_s=10) as watch:
        write_tree(tmp_path, {f"{CPUS}/cpu1/thermal_throttle/core_throttle_count": "20"})
    assert watch.seen is not None and watch.seen.flags == ("slowed for heat 3 times",)


def test_a_quiet_run_has_nothing_to_note(tmp_path: Path) -> None:
    for root, files in ((tmp_path / "empty", {}), (tmp_path / "pi", PI_4 | {FLAGS: "50000"})):
        with ThrottleWatch(write_tree(root, files), (0,), interval_s=10) as watch:
            pass
        assert watch.seen is not None
        assert (watch.seen.throttled, watch.seen.note) == (False, "")


def test_a_watch_can_be_used_again_and_ends_its_thread(tmp_path: Path) -> None:
    import threading

    before = threading.active_count()
    watch = ThrottleWatch(write_tree(tmp_path, PI_4 | {FLAGS: "0"}), (0,), interval_s=0.01)
    for _ in range(3):
        watch.start()
        assert isinstance(watch.stop(), RunConditions)
    assert threading.active_count() == before
    with ThrottleWatch() as here:
        pass
    assert here.seen is not None and here.seen.seconds < 5
