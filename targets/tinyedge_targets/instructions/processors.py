"""The instruction set extensions of processors, by the names zig and LLVM give these (`-mcpu`).

Levels: Arm Architecture Reference Manual (DDI 0487), chapter A2; rows: LLVM's AArch64Processors.td, and the tests compare them
with what zig says. Left out are the cryptographic instructions: makers leave them out of cores that LLVM lists with them (those
of the Raspberry Pi 3 and 4, for two), so a board has them only where its own features name them. Also left out are extensions
that no compiler uses unasked.
"""

from __future__ import annotations

_V8_1 = frozenset({"crc32", "atomics", "asimdrdm", "lor"})
_V8_2 = _V8_1 | {"dcpop"}
_V8_3 = _V8_2 | {"fcma", "jscvt", "lrcpc", "paca"}
_V8_4 = _V8_3 | {"asimddp", "flagm", "ilrcpc", "dit"}
_V8_5 = _V8_4 | {"flagm2", "frint", "sb", "dcpodp", "specres", "ssbs"}
_V8_6 = _V8_5 | {"bf16", "i8mm"}
_V8_7 = _V8_6 | {"wfxt", "xs"}
_HALF = frozenset({"fphp", "asimdhp"})
_FHM = _HALF | {"asimdfhm"}
_A55 = _V8_2 | _HALF | {"asimddp", "lrcpc"}
_A76 = _A55 | {"ssbs"}
_SVE = _FHM | {"sve"}
_SVE2 = _SVE | {"sve2", "mte"}
_A510 = _V8_5 | _SVE2 | {"bf16", "i8mm", "svebf16", "svei8mm"}
_A520 = _A510 | _V8_7

AARCH64: dict[str, frozenset[str]] = {
    "generic": frozenset(),
    "cortex_a35": frozenset({"crc32"}),
    "cortex_a53": frozenset({"crc32"}),
    "cortex_a57": frozenset({"crc32"}),
    "cortex_a72": frozenset({"crc32"}),
    "cortex_a73": frozenset({"crc32"}),
    "cortex_a55": _A55,
    "cortex_a75": _A55,
    "cortex_a76": _A76,
    "cortex_a76ae": _A76,
    "cortex_a77": _A76,
    "cortex_a78": _A76,
    "cortex_a78ae": _A76,
    "cortex_a78c": _A76 | {"paca", "flagm"},
    "cortex_x1": _A76,
    "neoverse_n1": _A76,
    "neoverse_v1": _V8_4 | _SVE | {"bf16", "i8mm", "svebf16", "svei8mm", "ssbs", "rng", "dcpodp"},
    "neoverse_n2": _A510,
    "cortex_a510": _A510,
    "cortex_a710": _A510,
    "cortex_a715": _A510,
    "cortex_a520": _A520,
    "cortex_a720": _A520,
    "carmel": _V8_2 | _HALF,
    "apple_m1": _V8_4 | _FHM | {"flagm2", "frint", "sb", "dcpodp", "specres", "ssbs"},
    "apple_m2": _V8_6 | _FHM,
    "apple_m3": _V8_6 | _FHM,
    "apple_m4": _V8_7 | _FHM | {"sme"},
}

# System V psABI for x86-64, section "Micro-Architecture Levels".
X86_64: dict[str, frozenset[str]] = {
    "generic": frozenset(),
    "x86_64": frozenset(),
    "x86_64_v2": frozenset({"x86-64-v2"}),
    "x86_64_v3": frozenset({"x86-64-v2", "x86-64-v3"}),
    "x86_64_v4": frozenset({"x86-64-v2", "x86-64-v3", "x86-64-v4"}),
}

# 32-bit Arm, with the words of /proc/cpuinfo. A 64-bit core running 32-bit code has what ARMv8 made mandatory.
ARM: dict[str, frozenset[str]] = {
    "generic": frozenset({"vfpv3", "neon"}),
    "baseline": frozenset({"vfpv3", "neon"}),
    "cortex_a5": frozenset({"vfpv3", "neon", "vfpv4"}),
    "cortex_a7": frozenset({"vfpv3", "neon", "vfpv4", "idiva"}),
    "cortex_a8": frozenset({"vfpv3", "neon"}),
    "cortex_a9": frozenset({"vfpv3", "neon"}),
    "cortex_a15": frozenset({"vfpv3", "neon", "vfpv4", "idiva"}),
    "cortex_a17": frozenset({"vfpv3", "neon", "vfpv4", "idiva"}),
    "cortex_a53": frozenset({"vfpv3", "neon", "vfpv4", "idiva", "armv8"}),
    "cortex_a72": frozenset({"vfpv3", "neon", "vfpv4", "idiva", "armv8"}),
    "cortex_a76": frozenset({"vfpv3", "neon", "vfpv4", "idiva", "armv8"}),
}

_BY_MACHINE = {"aarch64": AARCH64, "x86_64": X86_64, "armv7l": ARM}


def features_of(machine: str, cpu: str) -> frozenset[str] | None:
    """What a processor has, None for one that is not in the table.

    `machine` is a platform tag's ("aarch64"); `cpu` is zig's `-mcpu`, where cryptography may be taken away, which the table
    leaves out anyway (`cortex_a72-aes-sha2`).
    """
    name, *less = cpu.split("-")
    return _BY_MACHINE[machine].get(name) if {*less} <= {"aes", "sha2", "sha3", "sm4"} else None
