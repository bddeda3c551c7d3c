"""What this machine is and whether the installed llama.cpp fits it: the facts behind `tinyedge devices`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tinyedge.machine.bandwidth import Bandwidth, kept_bandwidth, last_level_cache
from tinyedge.machine.build_probe import Build, probe_build
from tinyedge.machine.cpu import CpuFacts, cpu_facts
from tinyedge.machine.cpu_features import CpuFeatures, cpu_features, mac_sysctls
from tinyedge.machine.memory_facts import MemoryFacts, memory_facts
from tinyedge.machine.sensors import Sensors, read_sensors
from tinyedge.machine.system_files import read_text

FITS, SLOWER, CANNOT_RUN, MISSING = "fits", "slower", "cannot run", "missing"


@dataclass(frozen=True, slots=True)
class GgmlFeature:
    """A row of the tables below.

    `name` is ggml's word (ggml_backend_cpu_get_features in ggml-cpu.cpp). `needs` are the CPU's features without which code
    compiled for it dies. `speeds` tells whether a kernel uses it; one of `instead` in use makes it superfluous.
    """

    name: str
    needs: tuple[str, ...]
    speeds: bool = True
    instead: tuple[str, ...] = ()


# Which of them speed a kernel was read off the preprocessor conditions in ggml-cpu (ggml 0.25): SME is only used by KleidiAI,
# which a build may leave out, and AVX512_VBMI by no kernel. ggml does not report SVE2 and has no kernel for ARM's BF16.
_AARCH64 = (
    GgmlFeature("NEON", ("asimd",)),
    GgmlFeature("ARM_FMA", ("asimd",)),
    GgmlFeature("FP16_VA", ("fphp", "asimdhp")),
    GgmlFeature("DOTPROD", ("asimddp",)),
    GgmlFeature("MATMUL_INT8", ("i8mm",)),
    GgmlFeature("SVE", ("sve",)),
    GgmlFeature("SME", ("sme",), speeds=False),
    GgmlFeature("SME2", ("sme2",), speeds=False),
)
# What 64-bit cores have beyond NEON and its fused multiply-add counts for little in 32 bits: the repacked products, where it
# pays most, exist for aarch64 alone (arch/arm/repack.cpp), and a 32-bit wheel is one for all boards.
_ARM = (
    GgmlFeature("NEON", ("neon",)),
    GgmlFeature("ARM_FMA", ("vfpv4",)),
    GgmlFeature("FP16_VA", ("asimdhp",), speeds=False),
    GgmlFeature("DOTPROD", ("asimddp",), speeds=False),
    GgmlFeature("MATMUL_INT8", ("i8mm",), speeds=False),
)
_X86 = (
    GgmlFeature("SSE3", ("pni",), speeds=False),
    GgmlFeature("SSSE3", ("ssse3",)),
    GgmlFeature("AVX", ("avx",)),
    GgmlFeature("F16C", ("f16c",)),
    GgmlFeature("FMA", ("fma",)),
    GgmlFeature("AVX2", ("avx2",)),
    GgmlFeature("BMI2", ("bmi2",)),
    GgmlFeature("AVX_VNNI", ("avx_vnni",), instead=("AVX512_VNNI",)),
    GgmlFeature("AVX512", ("avx512f",)),
    GgmlFeature("AVX512_VBMI", ("avx512vbmi",), speeds=False),
    GgmlFeature("AVX512_VNNI", ("avx512_vnni",)),
    GgmlFeature("AVX512_BF16", ("avx512_bf16",)),
    GgmlFeature("AMX_INT8", ("amx_tile", "amx_int8")),
)
GGML_FEATURES: Mapping[str, tuple[GgmlFeature, ...]] = {"aarch64": _AARCH64, "arm": _ARM, "x86_64": _X86}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """The board or computer: `model` as its maker names it, `compatible` as the device tree lists it, special to general."""

    model: str
    compatible: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureUse:
    """One row of the comparison: whether the CPU has what ggml calls `name`, whether the build uses it, and if that pays."""

    name: str
    cpu: bool
    build: bool
    speeds: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether the build suits the CPU: `state` is one of FITS, SLOWER, CANNOT_RUN, MISSING, and `reason` one sentence.

    `lacking` are the features the build uses and the CPU lacks, `unused` those that would speed it up and that it does not use,
    both in ggml's words.
    """

    state: str
    reason: str
    lacking: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineReport:
    """Everything that `tinyedge devices` knows. `bandwidth` is None where it was not measured.

    `cache_bytes` are those of the last-level caches that this process may use, 0 where the system does not tell.
    """

    hardware: Hardware
    cpu: CpuFeatures
    cores: CpuFacts
    memory: MemoryFacts
    sensors: Sensors
    build: Build
    features: tuple[FeatureUse, ...]
    verdict: Verdict
    bandwidth: Bandwidth | None = None
    cache_bytes: int = 0


def machine_report() -> MachineReport:
    """The report on this machine, with the bandwidth that was measured before, if any.

    Tries the installed llama.cpp in a child process; what is wrong with it is in the report.
    """
    cpu, build, cores = cpu_features(), probe_build(), cpu_facts()
    uses = compare(cpu, build)
    return MachineReport(
        hardware=hardware(),
        cpu=cpu,
        cores=cores,
        memory=memory_facts(),
        sensors=read_sensors(cores.allowed),
        build=build,
        features=uses,
        verdict=judge(build, uses),
        bandwidth=kept_bandwidth(),
        cache_bytes=last_level_cache(Path("/"), cores.allowed),
    )


def hardware() -> Hardware:
    """The board or computer that this process runs on."""
    if sys.platform == "darwin":
        return Hardware(model=mac_sysctls().get("hw.model", ""))
    return linux_hardware(Path("/"))


def linux_hardware(root: Path) -> Hardware:
    """The board as the device tree under `root` names it; the computer as its firmware does (DMI) where there is none."""
    tree = root / "proc/device-tree"
    compatible = tuple(filter(None, read_text(tree / "compatible").split("\0")))
    return Hardware(model=read_text(tree / "model") or read_text(root / "sys/class/dmi/id/product_name"), compatible=compatible)


def compare(cpu: CpuFeatures, build: Build) -> tuple[FeatureUse, ...]:
    """The features that the CPU has or the build uses, in the order of the tables.

    Empty when either is not known: there is nothing to compare then.
    """
    if cpu.words is None or build.features is None:
        return ()
    words, used = frozenset(cpu.words), {name for name, value in build.features.items() if value != "0"}
    rows = (
        FeatureUse(
            name=each.name,
            cpu=words.issuperset(each.needs),
            build=each.name in used,
            speeds=each.speeds and used.isdisjoint(each.instead),
        )
        for each in GGML_FEATURES.get(cpu.architecture, ())
    )
    return tuple(row for row in rows if row.cpu or row.build)


def judge(build: Build, uses: tuple[FeatureUse, ...]) -> Verdict:
    """Whether the build suits the CPU. What its kernels need decides, also where trying them happened to work."""
    if build.version is None:
        return Verdict(state=MISSING, reason=build.problem)
    lacking = tuple(use.name for use in uses if use.build and not use.cpu)
    if lacking:
        names = _and(lacking)
        return Verdict(
            state=CANNOT_RUN, reason=f"it was built for a newer CPU: it uses {names}, which this one lacks", lacking=lacking
        )
    if build.problem:
        made_for = f" ({build.wheel.cpu})" if build.signal and build.wheel and build.wheel.layout == "single" else ""
        return Verdict(state=CANNOT_RUN, reason=build.problem + made_for)
    unused = tuple(use.name for use in uses if use.cpu and use.speeds and not use.build)
    if unused:
        return Verdict(
            state=SLOWER,
            reason=f"it leaves speed on the table: this CPU has {_and(unused)}, which it does not use",
            unused=unused,
        )
    if not uses:
        return Verdict(state=FITS, reason="its CPU kernels compute here; what they use of this CPU is not known")
    return Verdict(state=FITS, reason="it uses all of this CPU that ggml's kernels know how to use")


def _and(names: tuple[str, ...]) -> str:
    """`A`, `A and B`, `A, B and C`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
