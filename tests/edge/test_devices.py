"""Whether the installed build suits the CPU: judged from what both say, tried in a child that may die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import system_tree

from tinyedge.cli.device_lines import report_lines
from tinyedge.cli.devices import board_name, describe
from tinyedge.errors import WheelError
from tinyedge.machine.bandwidth import Bandwidth
from tinyedge.machine.build_probe import Build
from tinyedge.machine.cpu import CpuFacts
from tinyedge.machine.cpu_features import CpuFeatures
from tinyedge.machine.devices import (
    CANNOT_RUN,
    FITS,
    GGML_FEATURES,
    MISSING,
    SLOWER,
    Hardware,
    MachineReport,
    compare,
    judge,
    linux_hardware,
)
from tinyedge.machine.memory_facts import MemoryFacts, linux_memory
from tinyedge.machine.sensors import Clock, Power, Sensors, Throttling
from tinyedge.native.library import package_version
from tinyedge.wheel_facts import WheelFacts, read_wheel_facts
from tinyedge_targets.boards import boards, emulated_cpu, find_board

A72 = ("fp", "asimd", "crc32")
A76 = (*A72, "atomics", "fphp", "asimdhp", "asimddp")
ARMV8_0 = ("NEON", "ARM_FMA", "LLAMAFILE", "REPACK")
ARMV8_2 = (*ARMV8_0, "FP16_VA", "DOTPROD")
COMMAND = (sys.executable, "-m", "tinyedge", "devices", "--no-measure")
FACTS = {
    "format": 1,
    "llama_cpp_python": "0.3.36",
    "triple": "aarch64-linux-gnu",
    "glibc": "2.17",
    "cpu": "generic",
    "layout": "variants",
    "variants": ["armv8.0_1", "armv8.2_2"],
    "compiler": "zig 0.17.1",
    "flags": ["-fno-math-errno"],
    "boards": ["rpi4", "rpi5"],
}


def cpu(words: Sequence[str] | None, kind: str = "aarch64", level: str = "", model: str = "4x Cortex-A72") -> CpuFeatures:
    return CpuFeatures(architecture=kind, model=model, words=None if words is None else tuple(words), level=level)


def build(features: Sequence[str] | None, **more: Any) -> Build:
    return Build(version="0.3.36", features=None if features is None else dict.fromkeys(features, "1"), **more)


def wheel_facts(**more: Any) -> WheelFacts:
    lists = {key: tuple(value) if isinstance(value, list) else value for key, value in FACTS.items() if key != "format"}
    return WheelFacts(**(lists | more))


def machine(found: CpuFeatures, installed: Build, hardware: Hardware) -> MachineReport:
    uses = compare(found, installed)
    return MachineReport(
        hardware=hardware,
        cpu=found,
        cores=CpuFacts(name="", logical=4, physical=4, performance=4, quota=None),
        memory=MemoryFacts(total=4 << 30, available=3 << 30),
        sensors=Sensors(),
        build=installed,
        features=uses,
        verdict=judge(installed, uses),
    )


PI_4 = Hardware(model="Raspberry Pi 4 Model B Rev 1.4", compatible=("raspberrypi,4-model-b", "brcm,bcm2711"))


def write_tree(root: Path, model: str, *compatible: str) -> Path:
    tree = root / "proc/device-tree"
    tree.mkdir(parents=True)
    (tree / "model").write_bytes(model.encode() + b"\0")
    (tree / "compatible").write_bytes(b"".join(each.encode() + b"\0" for each in compatible))
    return root


@pytest.mark.parametrize("name", ["cortex-a53", "cortex-a72", "cortex-a76", "neoverse-n1"])
def test_the_variant_that_ggml_picks_on_an_emulated_cpu_is_judged_to_fit(name: str) -> None:
    used = {"armv8.0_1": ARMV8_0, "armv8.2_2": ARMV8_2}[emulated_cpu(name).variant]
    installed = build(used)
    assert judge(installed, compare(cpu(emulated_cpu(name).features), installed)).state == FITS


def test_a_single_build_for_a_pi_5_cannot_run_on_a_pi_4() -> None:
    installed = build(ARMV8_2, problem="SIGILL", signal=4)
    verdict = judge(installed, compare(cpu(A72), installed))
    assert (verdict.state, verdict.lacking) == (CANNOT_RUN, ("FP16_VA", "DOTPROD"))
    assert "built for a newer CPU" in verdict.reason


def test_what_a_build_needs_decides_also_when_a_trial_happened_to_work() -> None:
    installed = build(ARMV8_2)
    assert judge(installed, compare(cpu(A72), installed)).state == CANNOT_RUN


def test_a_pi_4_build_on_a_pi_5_leaves_speed_on_the_table() -> None:
    installed = build(ARMV8_0)
    verdict = judge(installed, compare(cpu(A76), installed))
    assert (verdict.state, verdict.unused) == (SLOWER, ("FP16_VA", "DOTPROD"))
    assert "FP16_VA and DOTPROD" in verdict.reason


@pytest.mark.parametrize(
    ("words", "used", "unused"),
    [
        (("avx", "avx2"), ("AVX", "AVX2"), ()),
        (("avx", "avx2"), ("AVX",), ("AVX2",)),
        (("avx512f", "avx512vbmi"), ("AVX512",), ()),  # no kernel uses VBMI
        (("avx512f", "avx512_vnni", "avx_vnni"), ("AVX512", "AVX512_VNNI"), ()),  # the wider form takes its place
        (("avx2", "avx_vnni"), ("AVX2",), ("AVX_VNNI",)),
        (("amx_tile", "amx_int8"), (), ("AMX_INT8",)),
        (("amx_tile",), (), ()),
    ],
)
def test_only_what_speeds_a_kernel_counts_as_left_on_the_table(
    words: tuple[str, ...], used: tuple[str, ...], unused: tuple[str, ...]
) -> None:
    installed = build(used)
    verdict = judge(installed, compare(cpu(words, "x86_64"), installed))
    assert (verdict.unused, verdict.state) == (unused, SLOWER if unused else FITS)


def test_nothing_is_compared_where_one_side_is_unknown() -> None:
    for found, installed in ((cpu(None), build(ARMV8_2)), (cpu(A72), build(None))):
        assert compare(found, installed) == ()
        assert "not known" in judge(installed, ()).reason


def test_every_feature_of_the_installed_build_is_one_this_cpu_has() -> None:
    found = run_devices()
    ours = {each.name for each in GGML_FEATURES[found["cpu"]["architecture"]]}
    used = {row["name"] for row in found["features"] if row["build"]}
    assert used == set(found["build"]["features"]) & ours
    assert all(row["cpu"] for row in found["features"] if row["build"])
    assert found["verdict"]["state"] in (FITS, SLOWER)
    assert found["verdict"]["lacking"] == []


def test_the_command_names_the_library_that_holds_the_kernels() -> None:
    found = run_devices()
    assert Path(found["build"]["cpu_library"]).name.startswith(("libggml-cpu", "libggml."))
    assert found["build"]["llama_cpp_python"] == package_version()
    assert "cpu" in found["build"]["backends"]
    assert found["devices"][-1]["type"] == "cpu"
    assert 0 < found["memory"]["available_bytes"] <= found["memory"]["total_bytes"]


def test_the_report_for_a_person_says_the_same() -> None:
    found = run_devices()
    text = subprocess.run(COMMAND, capture_output=True, text=True, check=True).stdout
    assert found["verdict"]["reason"] in text
    assert f"({found['board']['name']})" in text
    for row in found["features"]:
        assert f"\n{row['name']:<14}" in text


STUB_WHEEL = json.dumps(FACTS | {"cpu": "cortex_a76", "layout": "single", "boards": ["rpi5"]})


@pytest.mark.parametrize(
    ("body", "reason", "signal"),
    [
        ("import os; os.kill(os.getpid(), 4)", "it was built for a newer CPU (cortex_a76)", 4),
        ("import os; os._exit(132)", "it was built for a newer CPU", 4),
        ("import os; os.kill(os.getpid(), 11)", "is killed by SIGSEGV when it is loaded", 11),
        ("raise OSError('/lib/libm.so.6: version `GLIBC_2.38` not found')", "GLIBC_2.38", None),
        ("import os; print('{\"computes\": true}', flush=True); os._exit(7)", "ends with 7", None),
        ("llama_log_callback = 1", "it raises TypeError", None),
    ],
)
def test_a_library_that_does_not_load_here_is_diagnosed(tmp_path: Path, body: str, reason: str, signal: int | None) -> None:
    package = tmp_path / "llama_cpp"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "llama_cpp.py").write_text(body + "\n", encoding="utf-8")
    (package / "tinyedge_build.json").write_text(STUB_WHEEL, encoding="utf-8")
    found = run_devices(tmp_path, exit_code=14)
    assert found["verdict"]["state"] == CANNOT_RUN
    assert reason in found["verdict"]["reason"]
    assert found["build"]["signal"] == signal
    assert found["verdict"]["command"].startswith("tinyedge wheel --board ")
    assert found["build"]["wheel"]["boards"] == ["rpi5"]
    assert found["advice"]["command"] is None


def test_without_llama_cpp_the_wheel_is_named(tmp_path: Path) -> None:
    script = (
        "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, p=None: None if n == 'llama_cpp' else f(n, p)"
    )
    (tmp_path / "sitecustomize.py").write_text(script, encoding="utf-8")
    found = run_devices(tmp_path, exit_code=14)
    assert found["verdict"]["state"] == MISSING
    assert found["build"]["llama_cpp_python"] is None
    assert found["verdict"]["command"] == f"tinyedge wheel --board {found['board']['name']}"


@pytest.mark.parametrize(
    ("kind", "model", "compatible", "name"),
    [
        ("aarch64", "Raspberry Pi 4 Model B Rev 1.4", ("raspberrypi,4-model-b", "brcm,bcm2711"), "rpi4"),
        ("arm", "Raspberry Pi 4 Model B Rev 1.4", ("raspberrypi,4-model-b", "brcm,bcm2711"), "rpi4-32"),
        ("aarch64", "Raspberry Pi 400 Rev 1.0", ("raspberrypi,400", "brcm,bcm2711"), "rpi400"),
        ("aarch64", "Raspberry Pi 5 Model B Rev 1.0", ("raspberrypi,5-model-b", "brcm,bcm2712"), "rpi5"),
        ("aarch64", "Raspberry Pi Zero 2 W Rev 1.0", ("raspberrypi,model-zero-2-w", "brcm,bcm2837"), "rpizero2w"),
        ("arm", "Raspberry Pi Zero 2 W Rev 1.0", ("raspberrypi,model-zero-2-w", "brcm,bcm2837"), "rpizero2w-32"),
        ("aarch64", "Raspberry Pi 3 Model B Plus Rev 1.3", ("raspberrypi,3-model-b-plus", "brcm,bcm2837"), "rpi3"),
        ("aarch64", "Raspberry Pi Compute Module 4 Rev 1.1", ("raspberrypi,4-compute-module", "brcm,bcm2711"), "cm4"),
        ("aarch64", "Radxa ROCK 5B", ("radxa,rock-5b", "rockchip,rk3588"), "rk3588"),
        ("aarch64", "Orange Pi 5 Plus", ("xunlong,orangepi-5-plus", "rockchip,rk3588"), "rk3588"),
        ("aarch64", "Hardkernel ODROID-N2Plus", ("hardkernel,odroid-n2-plus", "amlogic,s922x", "amlogic,g12b"), "odroid-n2"),
        ("aarch64", "BeagleBoard.org BeaglePlay", ("beagle,am625-beagleplay", "ti,am625"), "beagleplay"),
        ("aarch64", "NVIDIA Jetson Nano Developer Kit", ("nvidia,p3450-0000", "nvidia,tegra210"), "jetson-nano"),
        ("aarch64", "A board of next year", ("maker,board",), "aarch64"),
        ("arm", "A board of next year", ("maker,board",), "armv7"),
    ],
)
def test_a_device_tree_names_the_board(tmp_path: Path, kind: str, model: str, compatible: tuple[str, ...], name: str) -> None:
    found = linux_hardware(write_tree(tmp_path, model, *compatible))
    assert (found.model, found.compatible) == (model, compatible)
    assert board_name(found, cpu(A72, kind), boards()) == name


@pytest.mark.parametrize(
    ("kind", "level", "model", "name"),
    [
        ("x86_64", "x86-64-v1", "An old Opteron", "native"),
        ("x86_64", "x86-64-v2", "Intel(R) Celeron(R) N4020", "x86-64-v2"),
        ("x86_64", "x86-64-v4", "AMD EPYC", "x86-64-v4"),
        ("aarch64", "", "Apple M2 Pro", "mac-m2"),
        ("aarch64", "", "Apple M9", "native"),
        ("riscv64", "", "", "native"),
    ],
)
def test_a_computer_is_named_by_its_cpu(kind: str, level: str, model: str, name: str) -> None:
    assert board_name(Hardware(model="20XY"), cpu(None, kind, level, model), boards()) == name
    assert find_board(name).name == name


def test_the_remedy_is_the_boards_wheel() -> None:
    found = describe(machine(cpu(A72), build(ARMV8_2), PI_4), boards())
    assert found["verdict"]["command"] == "tinyedge wheel --board rpi4"
    assert describe(machine(cpu(A72), build(ARMV8_0), PI_4), boards())["verdict"]["command"] is None


def test_where_no_variant_uses_all_of_the_cpu_only_a_native_build_does() -> None:
    installed = build(ARMV8_2, wheel=wheel_facts())
    found = describe(machine(cpu((*A76, "i8mm")), installed, Hardware(model="Asahi")), boards())
    assert (found["verdict"]["unused"], found["verdict"]["command"]) == (("MATMUL_INT8",), "tinyedge wheel --board native")


def test_a_table_for_a_person_marks_what_differs() -> None:
    file = "/site-packages/llama_cpp/lib/libggml-cpu-armv8.0_1.so"
    installed = build(ARMV8_0, cpu_library=file, wheel=wheel_facts(compiler="zig \x1b[2J"), ggml="0.25.3", backends=("cpu",))
    text = "\n".join(report_lines(describe(machine(cpu(A76), installed, PI_4), boards())))
    assert "cpu kernels    armv8.0_1" in text
    assert "DOTPROD         yes     no  not used" in text
    assert "NEON            yes    yes\n" in text
    assert "zig \\x1b[2J" in text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{" * 100_000,
        b'{"format": 2}',
        b'{"format": 1}',
        json.dumps(FACTS | {"boards": "rpi4"}).encode(),
        json.dumps(FACTS | {"flags": [1]}).encode(),
        json.dumps(FACTS | {"flags": ["-O2"] * 20_000}).encode(),
        b"\xff\xfe",
    ],
    ids=str,
)
def test_a_damaged_description_of_the_wheel_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tinyedge_build.json").write_bytes(content)
    with pytest.raises(WheelError):
        read_wheel_facts(tmp_path)


def test_the_description_of_a_wheel_is_read_as_written(tmp_path: Path) -> None:
    assert read_wheel_facts(tmp_path) is None
    (tmp_path / "tinyedge_build.json").write_text(json.dumps(FACTS), encoding="utf-8")
    assert read_wheel_facts(tmp_path) == wheel_facts()


def test_the_variant_is_read_off_the_librarys_name() -> None:
    names = {"libggml-cpu-armv8.2_2.so": "armv8.2_2", "libggml-cpu.so.0": "", "libggml-cpu-apple_m1.dylib": "apple_m1", "": ""}
    for name, variant in names.items():
        assert build((), cpu_library=f"/somewhere/{name}").variant == variant


def test_the_state_of_a_board_is_told_in_words() -> None:
    report = replace(
        machine(cpu(A72), build(ARMV8_0), PI_4),
        cores=CpuFacts(name="", logical=3, physical=3, performance=1, quota=2.5, allowed=(1, 2, 3), online=4),
        memory=MemoryFacts(
            total=1 << 30,
            available=600 << 20,
            swap_total=200 << 20,
            swap_free=150 << 20,
            zram_total=100 << 20,
            cgroup_limit=800 << 20,
        ),
        sensors=Sensors(
            temperature_c=81.2,
            throttling=Throttling(now=("under-voltage",), since_boot=("under-voltage", "throttled")),
            governors=("powersave",),
            clock=Clock(now=600.0, maximum=1800.0),
            power=Power("battery", 41),
        ),
        bandwidth=Bandwidth({1: 3.5e9, 2: 4.4e9, 3: 4.2e9}, "2026-11-21"),
        cache_bytes=1 << 20,
    )
    lines = report_lines(describe(report, boards()))
    assert [line for line in lines[1:11] if not line.startswith("features")] == [
        "cpu            4x Cortex-A72, aarch64, 1.0 MiB of last-level cache",
        "cores          3 of 4 usable (1 performance, 2 efficiency), a quota of 2.5; 1 thread (1 performance of 3 cores)",
        "memory         1.0 GiB, 600 MiB available, limited to 800 MiB by a control group, swap 50 MiB of 200 MiB in use, "
        "100 MiB of it zram",
        "temperature    81 °C",
        "throttling     under-voltage now; under-voltage, throttled since it was started",
        "clock          600 MHz now, 1800 MHz at most, governor powersave",
        "power          battery, charged to 41%",
        "memory reads   3.5 GB/s with 1 thread, 4.4 with 2, 4.2 with 3 (measured 2026-11-21)",
        "llama.cpp      llama-cpp-python 0.3.36",
    ]


def test_of_many_thread_counts_first_best_and_last_are_shown() -> None:
    rates = {count: 1e9 * min(count, 16) - count * 1e6 for count in (1, 2, 4, 8, 16, 32, 64)}
    report = replace(machine(cpu(A76), build(ARMV8_2), PI_4), bandwidth=Bandwidth(rates, "2026-11-21"))
    text = "\n".join(report_lines(describe(report, boards())))
    assert "memory reads   1.0 GB/s with 1 thread, 16.0 with 16, 15.9 with 64 (measured 2026-11-21)\n" in text


def test_memory_swap_and_limits_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": "MemTotal:  1000000 kB\nMemFree: 5 kB\nMemAvailable:  600000 kB\nSwapTotal: 300 kB\nSwapFree: 100 kB",
        "proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n/dev/zram0 partition 200 0 100\n/var/swap file 100 100 -2",
        "proc/self/cgroup": "0::/app/job",
        "sys/fs/cgroup/app/memory.max": "500000000",
        "sys/fs/cgroup/app/job/memory.max": "max",
    }
    found = linux_memory(system_tree.write_tree(tmp_path, files))
    assert found == MemoryFacts(
        total=1000000 << 10,
        available=600000 << 10,
        swap_total=300 << 10,
        swap_free=100 << 10,
        zram_total=200 << 10,
        cgroup_limit=500000000,
    )


@pytest.mark.parametrize("limit", ["9223372036854771712", "max", "", "garbage"])
def test_no_limit_is_none(tmp_path: Path, limit: str) -> None:
    group = "sys/fs/cgroup/memory/memory.limit_in_bytes"
    files = {"proc/meminfo": "MemTotal: 1000 kB", "proc/self/cgroup": "4:memory:/docker/0\n0::/", group: limit}
    assert linux_memory(system_tree.write_tree(tmp_path, files)).cgroup_limit is None


def test_a_version_1_limit_is_read(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory/memory.limit_in_bytes"
    files = {"proc/meminfo": "MemTotal: 1000 kB", "proc/self/cgroup": "4:memory:/docker/0", group: "512000"}
    assert linux_memory(system_tree.write_tree(tmp_path, files)).cgroup_limit == 512000
    assert linux_memory(tmp_path / "nothing") == MemoryFacts(total=0, available=0)


def test_memory_is_measured_once_and_kept(tmp_path: Path) -> None:
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}

    def run(*options: str) -> tuple[dict[str, Any], str]:
        done = subprocess.run([*COMMAND[:-1], "--json", *options], capture_output=True, text=True, env=environment, check=True)
        return json.loads(done.stdout), done.stderr

    without, said = run("--no-measure")
    assert without["bandwidth"] is None and said == ""
    assert without["advice"]["types"][0]["expected_tokens_per_s"] is None
    first, said = run()
    assert "measuring" in said
    assert first["bandwidth"]["best_bytes_per_s"] == max(first["bandwidth"]["bytes_per_s_by_threads"].values()) > 1e8
    low, high = first["advice"]["types"][0]["expected_tokens_per_s"]
    assert 0 < low < high < first["advice"]["types"][0]["ceiling_tokens_per_s"]
    second, said = run()
    assert said == ""
    assert second["bandwidth"]["best_bytes_per_s"] == pytest.approx(first["bandwidth"]["best_bytes_per_s"], abs=1)
    (kept,) = (tmp_path / "tinyedge").glob("bandwidth-*.json")
    kept.write_text("damaged")
    assert "measuring" in run()[1]


def run_devices(first_on_the_path: Path | None = None, exit_code: int = 0) -> dict[str, Any]:
    """What `tinyedge devices --json` prints, with a folder whose modules go before the installed ones."""
    paths = [str(first_on_the_path)] if first_on_the_path else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run([*COMMAND, "--json"], capture_output=True, text=True, env=environment)
    assert done.returncode == exit_code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
