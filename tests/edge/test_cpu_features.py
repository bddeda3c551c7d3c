"""The CPU's features come out as the kernel's own words, for the system files of real boards and computers."""

from __future__ import annotations

import platform
import re
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tinyedge.machine.cpu_features import architecture, cpu_features, linux_features, mac_features, x86_level

# AT_HWCAP and AT_HWCAP2 as LD_SHOW_AUXV prints them on these cores, and the words /proc/cpuinfo has for them.
CORTEX_A72 = {16: 0x8FF, 26: 0}  # fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid
CORTEX_A53_OF_A_PI = {16: 0x887, 26: 0}  # the Pi's A53 has no crypto: fp asimd evtstrm crc32 cpuid
CORTEX_A76 = {16: 0x119FFF, 26: 0}  # ... atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
NEOVERSE_V2 = {16: 0xEFFFFFFF, 26: 0x3F3FF}
CORTEX_A72_32_BIT = {16: 0x3FB0D6, 26: 0x1F}  # half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae, crc32
SKYLAKE_V3 = "sse4_1 sse4_2 ssse3 pni cx16 lahf_lm popcnt avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"
NEHALEM_V2 = "pni ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm"
ZEN_4 = f"{SKYLAKE_V3} avx512f avx512dq avx512cd avx512bw avx512vl avx512_bf16 avx512vbmi avx512_vnni"


def write_machine(root: Path, *, vector: Mapping[int, int] | None = None, bits: int = 64, cpuinfo: str = "") -> Path:
    """The system files of a machine: /proc/self/auxv and /proc/cpuinfo."""
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    if vector is not None:
        entry = "<QQ" if bits == 64 else "<II"
        pairs = [(33, 0xFFFF0000), (6, 4096), *vector.items(), (23, 0), (0, 0)]
        (root / "proc/self/auxv").write_bytes(b"".join(struct.pack(entry, *pair) for pair in pairs))
    (root / "proc/cpuinfo").write_text(cpuinfo, encoding="utf-8")
    return root


def arm_cpuinfo(*parts: int, implementer: int = 0x41) -> str:
    """As arch/arm64/kernel/cpuinfo.c prints it, with the Raspberry Pi kernel's last lines."""
    blocks = [
        f"processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd\nCPU implementer\t: {implementer:#x}\n"
        f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {part:#x}\nCPU revision\t: 3\n"
        for number, part in enumerate(parts)
    ]
    return "\n".join([*blocks, "Revision\t: c03114\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n"])


def x86_cpuinfo(flags: str, name: str = "A Laptop CPU @ 2.60GHz") -> str:
    return f"processor\t: 0\nvendor_id\t: GenuineIntel\nmodel\t\t: 142\nmodel name\t: {name}\nflags\t\t: fpu sse2 {flags}\n\n"


def test_a_pi_4_has_neon_and_crc_but_no_dotprod(tmp_path: Path) -> None:
    found = linux_features("aarch64", write_machine(tmp_path, vector=CORTEX_A72, cpuinfo=arm_cpuinfo(*[0xD08] * 4)))
    assert found.words == ("fp", "asimd", "crc32")
    assert (found.model, found.level, found.emulated) == ("4x Cortex-A72", "", False)


def test_a_zero_2_w_has_what_its_cortex_a53_has(tmp_path: Path) -> None:
    found = linux_features("aarch64", write_machine(tmp_path, vector=CORTEX_A53_OF_A_PI, cpuinfo=arm_cpuinfo(*[0xD03] * 4)))
    assert (found.model, found.words) == ("4x Cortex-A53", ("fp", "asimd", "crc32"))


def test_a_pi_5_has_half_floats_and_dotprod(tmp_path: Path) -> None:
    found = linux_features("aarch64", write_machine(tmp_path, vector=CORTEX_A76, cpuinfo=arm_cpuinfo(*[0xD0B] * 4)))
    assert found.words == ("fp", "asimd", "crc32", "atomics", "fphp", "asimdhp", "asimddp")
    assert found.model == "4x Cortex-A76"


def test_an_rk3588_names_both_kinds_of_cores(tmp_path: Path) -> None:
    cpuinfo = arm_cpuinfo(*[0xD05] * 4, *[0xD0B] * 4)
    assert linux_features("aarch64", write_machine(tmp_path, vector=CORTEX_A76, cpuinfo=cpuinfo)).model == (
        "4x Cortex-A55 + 4x Cortex-A76"
    )


def test_a_server_core_has_sve2_i8mm_and_bf16(tmp_path: Path) -> None:
    words = linux_features("aarch64", write_machine(tmp_path, vector=NEOVERSE_V2, cpuinfo=arm_cpuinfo(0xD4F))).words
    assert words is not None
    assert {"sve", "sve2", "i8mm", "bf16"} <= set(words)
    assert "sme" not in words


def test_a_32_bit_process_reads_the_32_bit_table(tmp_path: Path) -> None:
    machine = write_machine(tmp_path, vector=CORTEX_A72_32_BIT, bits=32, cpuinfo=arm_cpuinfo(*[0xD08] * 4))
    found = linux_features("arm", machine)
    assert found.words == ("vfpv3", "neon", "vfpv4", "vfpd32", "idiva", "idivt", "crc32")


def test_under_qemu_user_the_vector_is_believed_and_not_the_hosts_cpuinfo(tmp_path: Path) -> None:
    found = linux_features("aarch64", write_machine(tmp_path, vector=CORTEX_A72, cpuinfo=x86_cpuinfo(ZEN_4)))
    assert (found.words, found.model, found.emulated) == (("fp", "asimd", "crc32"), "", True)


def test_an_unknown_core_keeps_its_numbers(tmp_path: Path) -> None:
    machine = write_machine(tmp_path, vector=CORTEX_A76, cpuinfo=arm_cpuinfo(0x1, 0x1, implementer=0x51))
    assert linux_features("aarch64", machine).model == "2x core 0x51/0x001"


@pytest.mark.parametrize(
    ("flags", "level", "last"),
    [
        ("pni ssse3", "x86-64-v1", "ssse3"),
        (NEHALEM_V2, "x86-64-v2", "sse4_2"),
        (SKYLAKE_V3, "x86-64-v3", "bmi2"),
        (ZEN_4, "x86-64-v4", "avx512_bf16"),
        (f"{SKYLAKE_V3} avx_vnni", "x86-64-v3", "avx_vnni"),
        (f"{ZEN_4} avx_vnni amx_tile amx_int8 amx_bf16", "x86-64-v4", "amx_bf16"),
    ],
)
def test_x86_flags_and_level(tmp_path: Path, flags: str, level: str, last: str) -> None:
    found = linux_features("x86_64", write_machine(tmp_path, cpuinfo=x86_cpuinfo(flags)))
    assert found.words is not None
    assert (found.level, found.words[-1], found.model) == (level, last, "A Laptop CPU @ 2.60GHz")
    assert set(found.words) == set(flags.split()) - {"cx16", "lahf_lm", "popcnt", "bmi1", "abm", "movbe", "xsave"}


def test_avx512_without_the_level_below_it_is_not_level_4() -> None:
    assert x86_level(frozenset(ZEN_4.split()) - {"movbe"}) == "x86-64-v2"


def test_a_system_that_says_nothing_is_unknown_and_not_poor(tmp_path: Path) -> None:
    for kind in ("aarch64", "arm", "x86_64", "riscv64"):
        found = linux_features(kind, tmp_path)
        assert (found.words, found.model, found.emulated) == (None, "", False)


def test_a_damaged_auxiliary_vector_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    machine = write_machine(tmp_path, vector=CORTEX_A72, cpuinfo=arm_cpuinfo(0xD08))
    vector = machine / "proc/self/auxv"
    vector.write_bytes(vector.read_bytes()[: 16 * 3 + 5])
    assert linux_features("aarch64", machine).words == ("fp", "asimd", "crc32")


@pytest.mark.parametrize(
    ("brand", "told", "more"),
    [
        ("Apple M1", {}, ()),
        ("Apple M2 Pro", {"FEAT_I8MM": "1", "FEAT_BF16": "1", "FEAT_SME": "0"}, ("i8mm", "bf16")),
        ("Apple M4", {"FEAT_I8MM": "1", "FEAT_BF16": "1", "FEAT_SME": "1", "FEAT_SME2": "1"}, ("i8mm", "bf16", "sme", "sme2")),
    ],
)
def test_apple_silicon(brand: str, told: dict[str, str], more: tuple[str, ...]) -> None:
    sysctls = {"machdep.cpu.brand_string": brand} | {f"hw.optional.arm.{name}": value for name, value in told.items()}
    found = mac_features("aarch64", sysctls)
    assert found.words is not None
    assert {"asimd", "asimddp", "asimdhp"} <= set(found.words)
    assert (found.model, found.words[-len(more) :] if more else ()) == (brand, more)
    assert not set(found.words) & ({"i8mm", "bf16", "sme", "sme2"} - set(more))


def test_an_intel_mac_with_avx2_is_level_3() -> None:
    names = ("sse3", "supplementalsse3", "sse4_1", "sse4_2", "avx1_0", "avx2_0", "bmi1", "bmi2", "f16c", "fma")
    sysctls = {f"hw.optional.{name}": "1" for name in names} | {"hw.optional.avx512f": "0"}
    found = mac_features("x86_64", sysctls)
    assert found.level == "x86-64-v3"
    assert found.words == ("pni", "ssse3", "sse4_1", "sse4_2", "avx", "f16c", "fma", "avx2", "bmi2")


@pytest.mark.parametrize(
    ("machine", "is_64_bit", "kind"),
    [
        ("aarch64", True, "aarch64"),
        ("arm64", True, "aarch64"),
        ("aarch64", False, "arm"),  # a 32-bit system on the 64-bit kernel of Raspberry Pi OS
        ("armv7l", False, "arm"),
        ("armv6l", False, "arm"),
        ("x86_64", True, "x86_64"),
        ("riscv64", True, "riscv64"),
    ],
)
def test_the_architecture_is_that_of_the_process(machine: str, is_64_bit: bool, kind: str) -> None:
    assert architecture(machine, is_64_bit) == kind


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="asks glibc for the x86-64 level")
def test_this_machines_level_is_the_one_glibc_finds() -> None:
    loader = Path("/lib64/ld-linux-x86-64.so.2")
    if not loader.exists():
        pytest.skip("no glibc")
    said = subprocess.run([loader, "--help"], capture_output=True, text=True).stdout
    levels = re.findall(r"(x86-64-v\d) \(supported", said)
    if "x86-64-v" not in said:
        pytest.skip("this glibc does not list the levels")
    assert cpu_features().level == max(levels, default="x86-64-v1")
