"""What this machine's processor can do, in the words of the Linux kernel: `asimddp`, `i8mm`, `avx2`, `avx512_vnni`.

On ARM the auxiliary vector says it: unlike /proc/cpuinfo it is also right under qemu-user, which passes the host's file on.
On x86 /proc/cpuinfo says it, without what the kernel has switched off. On macOS sysctl says it.
"""

from __future__ import annotations

import platform
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_AT_HWCAP, _AT_HWCAP2 = 16, 26  # include/uapi/linux/auxvec.h

# Bits of AT_HWCAP and AT_HWCAP2 of those features that ggml's kernels or the compilers of its builds use:
# arch/arm64/include/uapi/asm/hwcap.h; the words are those that arch/arm64/kernel/cpuinfo.c prints.
_AARCH64 = (
    ("fp", _AT_HWCAP, 0),
    ("asimd", _AT_HWCAP, 1),
    ("crc32", _AT_HWCAP, 7),
    ("atomics", _AT_HWCAP, 8),
    ("fphp", _AT_HWCAP, 9),
    ("asimdhp", _AT_HWCAP, 10),
    ("asimddp", _AT_HWCAP, 20),
    ("asimdfhm", _AT_HWCAP, 23),
    ("i8mm", _AT_HWCAP2, 13),
    ("bf16", _AT_HWCAP2, 14),
    ("sve", _AT_HWCAP, 22),
    ("sve2", _AT_HWCAP2, 1),
    ("sme", _AT_HWCAP2, 23),
    ("sme2", _AT_HWCAP2, 37),
)
# The same for 32-bit processes: arch/arm/include/uapi/asm/hwcap.h, words of arch/arm/kernel/setup.c.
_ARM = (
    ("vfpv3", _AT_HWCAP, 13),
    ("neon", _AT_HWCAP, 12),
    ("vfpv4", _AT_HWCAP, 16),
    ("vfpd32", _AT_HWCAP, 19),
    ("idiva", _AT_HWCAP, 17),
    ("idivt", _AT_HWCAP, 18),
    ("crc32", _AT_HWCAP2, 4),
    ("fphp", _AT_HWCAP, 22),
    ("asimdhp", _AT_HWCAP, 23),
    ("asimddp", _AT_HWCAP, 24),
    ("asimdbf16", _AT_HWCAP, 26),
    ("i8mm", _AT_HWCAP, 27),
)
_BITS = {"aarch64": _AARCH64, "arm": _ARM}
_WORD_FORMATS = {"aarch64": "<QQ", "arm": "<II"}  # an entry of the vector: two unsigned longs

# Flags of /proc/cpuinfo (arch/x86/include/asm/cpufeatures.h).
_X86 = (
    "pni",  # SSE3
    *("ssse3", "sse4_1", "sse4_2", "avx", "f16c", "fma", "avx2", "bmi2", "avx_vnni"),
    *("avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl", "avx512vbmi", "avx512_vnni", "avx512_bf16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
)
# What each level adds (System V psABI for x86-64, "Micro-architecture levels"), in the words of /proc/cpuinfo.
_X86_LEVELS = (
    ("x86-64-v2", ("cx16", "lahf_lm", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2")),
    ("x86-64-v3", ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave")),
    ("x86-64-v4", ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")),
)

# Every Apple silicon Mac has at least what the M1 has (ARMv8.4 and more); the rest sysctl tells.
_APPLE_M1 = ("fp", "asimd", "crc32", "atomics", "fphp", "asimdhp", "asimddp", "asimdfhm")
_APPLE_SYSCTLS = {
    "i8mm": "hw.optional.arm.FEAT_I8MM",
    "bf16": "hw.optional.arm.FEAT_BF16",
    "sme": "hw.optional.arm.FEAT_SME",
    "sme2": "hw.optional.arm.FEAT_SME2",
}
_INTEL_MAC_SYSCTLS = {
    "pni": "hw.optional.sse3",
    "ssse3": "hw.optional.supplementalsse3",
    "sse4_1": "hw.optional.sse4_1",
    "sse4_2": "hw.optional.sse4_2",
    "avx": "hw.optional.avx1_0",
    "f16c": "hw.optional.f16c",
    "fma": "hw.optional.fma",
    "avx2": "hw.optional.avx2_0",
    "bmi1": "hw.optional.bmi1",
    "bmi2": "hw.optional.bmi2",
    "avx512f": "hw.optional.avx512f",
    "avx512cd": "hw.optional.avx512cd",
    "avx512bw": "hw.optional.avx512bw",
    "avx512dq": "hw.optional.avx512dq",
    "avx512vl": "hw.optional.avx512vl",
    "avx512vbmi": "hw.optional.avx512vbmi",
}
# macOS tells nothing of these; every Intel Mac that runs a supported macOS has them, those of Haswell with its AVX2.
_INTEL_MAC = ("cx16", "lahf_lm", "popcnt")
_INTEL_MAC_WITH_AVX2 = ("abm", "movbe", "xsave")

# Implementer and part number of MIDR_EL1: arch/arm64/include/asm/cputype.h, and Arm's reference manuals for the 32-bit ones.
_CORES = {
    (0x41, 0xC05): "Cortex-A5",
    (0x41, 0xC07): "Cortex-A7",
    (0x41, 0xC08): "Cortex-A8",
    (0x41, 0xC09): "Cortex-A9",
    (0x41, 0xC0D): "Cortex-A17",
    (0x41, 0xC0E): "Cortex-A17",
    (0x41, 0xC0F): "Cortex-A15",
    (0x41, 0xB76): "ARM1176",
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD0D): "Cortex-A77",
    (0x41, 0xD0E): "Cortex-A76AE",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD44): "Cortex-X1",
    (0x41, 0xD46): "Cortex-A510",
    (0x41, 0xD47): "Cortex-A710",
    (0x41, 0xD48): "Cortex-X2",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4B): "Cortex-A78C",
    (0x41, 0xD4D): "Cortex-A715",
    (0x41, 0xD4E): "Cortex-X3",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD80): "Cortex-A520",
    (0x41, 0xD81): "Cortex-A720",
    (0x41, 0xD82): "Cortex-X4",
    (0x46, 0x001): "A64FX",
    (0x4E, 0x003): "Denver 2",
    (0x4E, 0x004): "Carmel",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuFeatures:
    """What the processor can do.

    `architecture` is that of this process: aarch64, arm (32 bit), x86_64, or the system's own word. `model` names the
    processor, on ARM its cores ("4x Cortex-A55 + 4x Cortex-A76"); it is empty when nothing tells. `words` are the features that
    matter to ggml; None when this system does not tell. `level` is x86-64-v1 to v4, "" elsewhere. `emulated` means that the
    system's files describe another processor than the one this process sees.
    """

    architecture: str
    model: str
    words: tuple[str, ...] | None
    level: str = ""
    emulated: bool = False


def cpu_features() -> CpuFeatures:
    """The processor as this process sees it."""
    kind = architecture(platform.machine(), sys.maxsize > 2**32)
    if sys.platform == "darwin":
        return mac_features(kind, mac_sysctls())
    if sys.platform.startswith("linux"):
        return linux_features(kind, Path("/"))
    return CpuFeatures(architecture=kind, model="", words=None)


def architecture(machine: str, is_64_bit: bool) -> str:
    """The architecture of a process: the kernel's `machine`, or its 32-bit sibling on a kernel of 64 bits."""
    if machine in ("aarch64", "arm64"):
        return "aarch64" if is_64_bit else "arm"
    if machine in ("x86_64", "AMD64"):
        return "x86_64" if is_64_bit else "x86"
    return "arm" if machine.startswith("armv") else machine


def linux_features(kind: str, root: Path) -> CpuFeatures:
    """The processor as the files under `root` tell it to a process of the architecture `kind`."""
    processors = _processors(_read(root / "proc/cpuinfo").decode("utf-8", "replace"))
    if kind in _BITS:
        emulated = bool(processors) and not any("CPU implementer" in each for each in processors)
        vector = _auxiliary_vector(_read(root / "proc/self/auxv"), _WORD_FORMATS[kind])
        words = tuple(word for word, entry, bit in _BITS[kind] if vector.get(entry, 0) >> bit & 1)
        return CpuFeatures(architecture=kind, model=_core_names(processors), words=words if vector else None, emulated=emulated)
    first = processors[0] if processors else {}
    flags = frozenset(first.get("flags", "").split())
    if kind not in ("x86_64", "x86") or not flags:
        return CpuFeatures(architecture=kind, model=first.get("model name", ""), words=None)
    return CpuFeatures(
        architecture=kind,
        model=first.get("model name", ""),
        words=tuple(word for word in _X86 if word in flags),
        level=x86_level(flags),
    )


def x86_level(flags: frozenset[str]) -> str:
    """The highest level whose flags, and those of the levels below it, are all there: `x86-64-v3`."""
    reached = "x86-64-v1"
    for level, needed in _X86_LEVELS:
        if not flags.issuperset(needed):
            break
        reached = level
    return reached


def mac_features(kind: str, sysctls: Mapping[str, str]) -> CpuFeatures:
    """The processor of a Mac as its `sysctls` tell it."""
    model = sysctls.get("machdep.cpu.brand_string", "")
    if kind == "aarch64":
        more = tuple(word for word, name in _APPLE_SYSCTLS.items() if sysctls.get(name) == "1")
        return CpuFeatures(architecture=kind, model=model, words=_APPLE_M1 + more)
    flags = {word for word, name in _INTEL_MAC_SYSCTLS.items() if sysctls.get(name) == "1"}
    if not flags:
        return CpuFeatures(architecture=kind, model=model, words=None)
    level = x86_level(frozenset(flags.union(_INTEL_MAC, _INTEL_MAC_WITH_AVX2 if "avx2" in flags else ())))
    return CpuFeatures(architecture=kind, model=model, words=tuple(word for word in _X86 if word in flags), level=level)


def mac_sysctls() -> dict[str, str]:
    """What `sysctl` tells of a Mac's hardware, by name; empty when it cannot be run."""
    command = ["/usr/sbin/sysctl", "hw", "machdep.cpu"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)


def _auxiliary_vector(data: bytes, entry_format: str) -> dict[int, int]:
    """The vector's values by type, from /proc/self/auxv."""
    whole = len(data) // struct.calcsize(entry_format) * struct.calcsize(entry_format)
    return dict(struct.iter_unpack(entry_format, data[:whole]))


def _processors(text: str) -> list[dict[str, str]]:
    """The blocks of /proc/cpuinfo that describe a processor, as key and value."""
    blocks = []
    for block in text.split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        fields = {key.strip(): value.strip() for key, _, value in pairs}
        if "processor" in fields:
            blocks.append(fields)
    return blocks


def _core_names(processors: list[dict[str, str]]) -> str:
    """`4x Cortex-A55 + 4x Cortex-A76`, in the kernel's order; empty where the numbers are missing."""
    names: Counter[str] = Counter()
    for each in processors:
        implementer, part = _hexadecimal(each.get("CPU implementer")), _hexadecimal(each.get("CPU part"))
        if implementer is not None and part is not None:
            names[_CORES.get((implementer, part), f"core {implementer:#04x}/{part:#05x}")] += 1
    return " + ".join(f"{count}x {name}" for name, count in names.items())


def _hexadecimal(text: str | None) -> int | None:
    try:
        return int(text or "", 16)
    except ValueError:
        return None


def _read(path: Path) -> bytes:
    """A system file, empty where it is absent or closed to us."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
