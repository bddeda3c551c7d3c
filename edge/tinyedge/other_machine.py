"""A machine that is not this one, as far as a plan needs to know it: from its memory, its cores and what it is.

What is not known of it is estimated, and every estimate says where it comes from.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tinyedge.fitting import size
from tinyedge.load_plan import Machine
from tinyedge.machine.cpu import CpuFacts
from tinyedge.memory import repacked_types
from tinyedge.native.library import Device

_MIB, _GIB = 1 << 20, 1 << 30
# Python with tinyedge and llama.cpp, what the model takes not counted: measured 42 to 60 MiB on x86_64.
PROGRAM_BYTES = 60 * _MIB
# Metal's recommendedMaxWorkingSetSize, as Apple's chips report it: 5.3 of 8 GB, 10.7 of 16, 21.3 of 32, 48 of 64.
_METAL_SHARE, _METAL_SHARE_LARGE, _METAL_LARGE = 2 / 3, 3 / 4, 36 * _GIB
_UNKNOWN_CORES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """What of a machine's memory its system keeps, a fixed part and a share of the whole, and what for."""

    fixed_bytes: int
    share: float
    keeps: str

    def reserve(self, total_bytes: int) -> int:
        """Bytes of `total_bytes` that a model cannot have, tinyedge's own among them."""
        return min(total_bytes, self.fixed_bytes + int(self.share * total_bytes) + PROGRAM_BYTES)

    def reason(self, total_bytes: int) -> str:
        """The sentence that says how much is reserved and why."""
        return (
            f"of {_as_sold(total_bytes)}, {size(self.reserve(total_bytes) - PROGRAM_BYTES)} are left to {self.keeps} and "
            f"{size(PROGRAM_BYTES)} to tinyedge itself"
        )


def _as_sold(total_bytes: int) -> str:
    """`1 GiB`, `7.5 GiB`, `700 MiB`."""
    return size(total_bytes) if total_bytes % (_GIB // 4) else f"{total_bytes / _GIB:g} GiB"


# Estimates. A Raspberry Pi with 1 GB and no desktop has about 770 MiB free and one with 512 MB about 300: firmware and GPU take
# 64 to 76 MiB, kernel and services 130, page tables and caches grow with the memory. With a desktop and a browser: 2 GiB.
SYSTEMS: Mapping[str, System] = MappingProxyType(
    {
        "board": System(fixed_bytes=190 * _MIB, share=1 / 16, keeps="firmware, kernel and a system without a desktop"),
        "desktop": System(fixed_bytes=1536 * _MIB, share=1 / 16, keeps="a system with a desktop"),
        "macos": System(fixed_bytes=3 * _GIB, share=0.0, keeps="macOS and its programs"),
    }
)


@dataclass(frozen=True, slots=True)
class SpeedShare:
    """The share of its memory's theoretical bandwidth that llama.cpp reaches on a kind of machine, low to high."""

    low: float
    high: float


def speed_share(architecture: str, features: Collection[str], *, metal: bool = False) -> SpeedShare:
    """What to expect of a machine of this architecture whose CPU has these features (the kernel's words).

    Token rate times file size over theoretical bandwidth, from published runs: Raspberry Pi 5 (Cortex-A76, dot product)
    9.8 to 10.6 of 17.1 GB/s over five types (llama.cpp issue 26484), 9.8 to 10.6 with 3 to 13 B parameters (geerlingguy's
    sbc-reviews issue 21); Raspberry Pi 4 (no dot product) 3.1 to 3.4 of 12.8 GB/s (ollama-benchmark pull request 9); Apple's
    chips with Metal 0.7 to 0.85 (llama.cpp discussion 4167). For x86 an estimate.
    """
    if metal:
        return SpeedShare(0.65, 0.85)
    if architecture == "x86_64":
        return SpeedShare(0.45, 0.8) if "avx2" in features else SpeedShare(0.2, 0.5)
    return SpeedShare(0.45, 0.65) if "asimddp" in features else SpeedShare(0.18, 0.35)


def other_machine(
    total_bytes: int, system: System, *, architecture: str, features: Collection[str] | None, cpu: CpuFacts, metal: bool = False
) -> Machine:
    """A machine with `total_bytes` of memory, of which `system` keeps its part, and a CPU; with `metal` a Mac's GPU too.

    `architecture` and `features` as for `memory.repacked_types`.
    """
    free = total_bytes - system.reserve(total_bytes)
    devices = [Device("cpu", "CPU", cpu.name, total_bytes, free, "cpu")]
    if metal:
        share = _METAL_SHARE if total_bytes <= _METAL_LARGE else _METAL_SHARE_LARGE
        usable = int(share * total_bytes)
        devices.insert(0, Device("metal", "MTL0", "its GPU", usable, min(usable, free), "gpu"))
    return Machine(
        compiled=tuple(device.kind for device in devices),
        devices=tuple(devices),
        free_bytes=free,
        cpu=cpu,
        repacked=repacked_types(architecture, features),
    )


def cores_of(text: str) -> CpuFacts:
    """The processor that a text like `4x Cortex-A76 2.4 GHz + 4x Cortex-A55 1.8 GHz` or `4P + 4E 3.2 GHz` describes.

    The first group are the performance cores, of `6 to 8x` the fewest; four are assumed where no number is given.
    """
    least = re.sub(r"(\d) to \d+x", r"\1x", text)
    counts = [int(count) for count in re.findall(r"\b(\d{1,3})(?=x |P\b|E\b)", least)] or [_UNKNOWN_CORES]
    return CpuFacts(name=text, logical=sum(counts), physical=sum(counts), performance=counts[0], quota=None)


def parse_size(text: str) -> int:
    """Bytes in `512M`, `1G`, `7.5 GiB`: binary units, as memory is sold. Raises ValueError, one sentence."""
    found = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,3})?)\s*([MGT])(?:i?B)?\s*", text, re.IGNORECASE | re.ASCII)
    amount = int(float(found[1]) * (1 << {"M": 20, "G": 30, "T": 40}[found[2].upper()])) if found else 0
    if not _MIB <= amount <= 1 << 50:
        raise ValueError(f"{text[:40]!r} is not a size of memory; give it like 512M or 4G")
    return amount
