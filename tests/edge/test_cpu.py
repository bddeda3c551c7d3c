"""Threads follow what the system's own files say, for layouts copied from real machines."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tinyedge.machine.cpu import cpu_facts, cpu_list, linux_facts, mac_facts

CPUS = "sys/devices/system/cpu"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")


def topology(siblings: list[str]) -> dict[str, str]:
    """Sysfs files for processors 0, 1, ... with the given core_cpus_list each."""
    return {f"{CPUS}/cpu{number}/topology/core_cpus_list": text for number, text in enumerate(siblings)}


def test_four_equal_cores_are_four_threads(tmp_path: Path) -> None:
    write(tmp_path, topology(["0", "1", "2", "3"]) | {f"{CPUS}/cpu{n}/cpu_capacity": "1024" for n in range(4)})
    facts = linux_facts(tmp_path, range(4))
    assert (facts.logical, facts.physical, facts.performance, facts.threads) == (4, 4, 4, 4)
    assert facts.reason == "4 physical cores"


def test_hyperthreads_of_one_core_count_once(tmp_path: Path) -> None:
    write(tmp_path, topology(["0,4", "1,5", "2,6", "3,7"] * 2))
    facts = linux_facts(tmp_path, range(8))
    assert (facts.logical, facts.physical, facts.threads) == (8, 4, 4)


def test_the_older_name_of_the_sibling_list_works(tmp_path: Path) -> None:
    write(tmp_path, {f"{CPUS}/cpu{n}/topology/thread_siblings_list": "0-1" for n in range(2)})
    assert linux_facts(tmp_path, range(2)).physical == 1


def test_the_affinity_mask_limits_the_cores(tmp_path: Path) -> None:
    write(tmp_path, topology(["0,4", "1,5", "2,6", "3,7"] * 2))
    assert linux_facts(tmp_path, {4, 5}).threads == 2
    assert linux_facts(tmp_path, {0, 4}).threads == 1


def test_rk3588_uses_its_four_big_cores(tmp_path: Path) -> None:
    capacities = [414, 414, 414, 414, 1024, 1024, 1024, 1024]
    write(tmp_path, topology([str(n) for n in range(8)]))
    write(tmp_path, {f"{CPUS}/cpu{n}/cpu_capacity": str(capacity) for n, capacity in enumerate(capacities)})
    facts = linux_facts(tmp_path, range(8))
    assert (facts.physical, facts.threads) == (8, 4)
    assert facts.reason == "4 performance of 8 cores"


def test_a_mask_of_little_cores_alone_uses_all_of_them(tmp_path: Path) -> None:
    write(tmp_path, topology([str(n) for n in range(8)]))
    write(tmp_path, {f"{CPUS}/cpu{n}/cpu_capacity": "414" if n < 4 else "1024" for n in range(8)})
    assert linux_facts(tmp_path, range(4)).threads == 4


def test_one_prime_core_does_not_exclude_the_other_big_ones(tmp_path: Path) -> None:
    capacities = [250, 250, 250, 250, 870, 870, 870, 1024]
    write(tmp_path, topology([str(n) for n in range(8)]))
    write(tmp_path, {f"{CPUS}/cpu{n}/cpu_capacity": str(capacity) for n, capacity in enumerate(capacities)})
    assert linux_facts(tmp_path, range(8)).threads == 4


def test_clock_rates_tell_the_clusters_where_capacities_are_missing(tmp_path: Path) -> None:
    write(tmp_path, topology([str(n) for n in range(6)]))
    write(tmp_path, {f"{CPUS}/cpu{n}/cpufreq/cpuinfo_max_freq": "1800000" if n > 1 else "2400000" for n in range(6)})
    assert linux_facts(tmp_path, range(6)).threads == 2


def test_intel_hybrid_uses_its_performance_cores(tmp_path: Path) -> None:
    write(tmp_path, topology(["0-1", "0-1", "2-3", "2-3", "4", "5", "6", "7"]))
    write(tmp_path, {"sys/devices/cpu_core/cpus": "0-3", "sys/devices/cpu_atom/cpus": "4-7"})
    facts = linux_facts(tmp_path, range(8))
    assert (facts.physical, facts.threads) == (6, 2)


@pytest.mark.parametrize(("limit", "threads"), [("max 100000", 8), ("350000 100000", 3), ("50000 100000", 1)])
def test_a_version_2_quota_limits_the_threads(tmp_path: Path, limit: str, threads: int) -> None:
    write(tmp_path, topology([str(n) for n in range(8)]))
    write(tmp_path, {"proc/self/cgroup": "0::/app/job", "sys/fs/cgroup/app/cpu.max": limit})
    facts = linux_facts(tmp_path, range(8))
    assert facts.threads == threads
    assert ("quota" in facts.reason) == (threads < 8)


def test_the_tightest_of_nested_quotas_counts(tmp_path: Path) -> None:
    write(tmp_path, topology([str(n) for n in range(8)]))
    limits = {"sys/fs/cgroup/a/cpu.max": "200000 100000", "sys/fs/cgroup/a/b/cpu.max": "600000 100000"}
    write(tmp_path, {"proc/self/cgroup": "0::/a/b"} | limits)
    assert linux_facts(tmp_path, range(8)).quota == 2.0


def test_in_a_container_the_mounted_root_is_the_group(tmp_path: Path) -> None:
    write(tmp_path, topology(["0", "1", "2", "3"]))
    write(tmp_path, {"proc/self/cgroup": "0::/docker/0123", "sys/fs/cgroup/cpu.max": "200000 100000"})
    assert linux_facts(tmp_path, range(4)).threads == 2


def test_a_version_1_quota_limits_the_threads(tmp_path: Path) -> None:
    write(tmp_path, topology(["0", "1", "2", "3"]))
    group = "sys/fs/cgroup/cpu/job"
    write(tmp_path, {"proc/self/cgroup": "4:memory:/job\n2:cpu,cpuacct:/job"})
    write(tmp_path, {f"{group}/cpu.cfs_quota_us": "200000", f"{group}/cpu.cfs_period_us": "100000"})
    write(tmp_path, {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"})
    assert linux_facts(tmp_path, range(4)).quota == 2.0


def test_a_system_that_says_nothing_counts_processors(tmp_path: Path) -> None:
    facts = linux_facts(tmp_path, range(3))
    assert (facts.name, facts.threads, facts.quota) == ("", 3, None)


def test_the_name_comes_from_cpuinfo_or_the_device_tree(tmp_path: Path) -> None:
    write(tmp_path, {"proc/cpuinfo": "processor\t: 0\nmodel\t\t: 17\nmodel name\t: AMD EPYC"})
    assert linux_facts(tmp_path, {0}).name == "AMD EPYC"
    write(tmp_path, {"proc/cpuinfo": "processor\t: 0", "proc/device-tree/model": "Raspberry Pi Zero 2 W Rev 1.0\0"})
    assert linux_facts(tmp_path, {0}).name == "Raspberry Pi Zero 2 W Rev 1.0"


def test_apple_silicon_uses_its_performance_cores() -> None:
    table = {
        "hw.logicalcpu": "8",
        "hw.physicalcpu": "8",
        "hw.perflevel0.physicalcpu": "4",
        "machdep.cpu.brand_string": "Apple M2",
    }
    facts = mac_facts(table.get)
    assert (facts.name, facts.physical, facts.threads) == ("Apple M2", 8, 4)


def test_an_intel_mac_uses_its_physical_cores() -> None:
    facts = mac_facts({"hw.logicalcpu": "8", "hw.physicalcpu": "4"}.get)
    assert (facts.logical, facts.threads) == (8, 4)


def test_cpu_lists_are_read_as_the_kernel_writes_them() -> None:
    assert cpu_list("0-2,5,8-9\n") == {0, 1, 2, 5, 8, 9}
    assert cpu_list("") == frozenset()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /sys and /proc")
def test_this_machine_starts_no_more_threads_than_it_may_use() -> None:
    facts = cpu_facts()
    assert 1 <= facts.threads <= len(os.sched_getaffinity(0))
    assert facts.physical <= facts.logical


def test_performance_and_efficiency_cores_are_named_and_counted(tmp_path: Path) -> None:
    capacities = [414, 414, 414, 414, 1024, 1024, 1024, 1024]
    write(tmp_path, topology([str(n) for n in range(8)]) | {f"{CPUS}/online": "0-7"})
    write(tmp_path, {f"{CPUS}/cpu{n}/cpu_capacity": str(capacity) for n, capacity in enumerate(capacities)})
    facts = linux_facts(tmp_path, range(2, 8))
    assert (facts.allowed, facts.performance_cpus) == ((2, 3, 4, 5, 6, 7), (4, 5, 6, 7))
    assert (facts.performance, facts.efficiency, facts.online) == (4, 2, 8)


def test_of_two_threads_of_a_core_the_first_is_named(tmp_path: Path) -> None:
    write(tmp_path, topology(["0,4", "1,5", "2,6", "3,7"] * 2))
    assert linux_facts(tmp_path, range(1, 8)).performance_cpus == (1, 2, 3, 4)


@pytest.mark.parametrize("text", ["", "garbage", "1 2 3", "9" * 400])
def test_a_quota_that_makes_no_sense_is_none(tmp_path: Path, text: str) -> None:
    write(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": text})
    assert linux_facts(tmp_path, range(2)).quota is None
