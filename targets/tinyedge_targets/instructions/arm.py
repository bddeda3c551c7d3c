"""What 32-bit Arm code needs beyond ARMv7-A with VFPv3-D16: as its build attributes say, and by its instructions.

Linkers keep the attributes of the first object they link, so these alone do not speak for a whole library. Attributes: "Addenda
to, and Errata in, the ABI for the Arm Architecture" (IHI 0045), section "Public ("aeabi") attribute tags". Encodings: Arm
Architecture Reference Manual (DDI 0487), chapter F4 "T32 and A32 Instruction Set Encoding Index". Features have the names of
/proc/cpuinfo, and "armv8" stands for what came with that architecture and has none.

Only the A32 instruction set is read, the one compilers use here unless told otherwise.
"""

from __future__ import annotations

import heapq
import itertools
import struct
from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from tinyedge_targets.instructions.encodings import MOST, Encodings, Words, matches, words

HARD_FLOAT_TAG = 28  # Tag_ABI_VFP_args, 1: floating point arguments in registers

# Tag -> (first value that needs more, feature), in rising order.
_NEEDS: dict[int, tuple[tuple[int, str], ...]] = {
    6: ((14, "armv8"),),  # Tag_CPU_arch; 10 is v7, 11 to 13 are microcontrollers'
    10: ((3, "vfpv3"), (5, "vfpv4"), (7, "armv8")),  # Tag_FP_arch
    12: ((1, "neon"), (2, "vfpv4"), (3, "armv8")),  # Tag_Advanced_SIMD_arch; 2 has fused multiply-add
    44: ((2, "idiva"),),  # Tag_DIV_use: division may be used although ARMv7-A lacks it
}
_TEXTS = {4, 5, 32, 65, 67}  # tags with a string; other odd tags above 32 have one too

# Instructions that take a condition, in bits 28 to 31 (15 there means something else), and those that take none: what compilers
# emit unasked, and cryptography. Vectors of half precision and what came after ARMv8.0 for them are not told apart here.
CONDITIONAL: Encodings = (
    (0x0FD0F0F0, 0x0710F010, "idiva"),  # SDIV, UDIV
    (0x0F900DF0, 0x01000040, "crc32"),
    (0x0F900DFF, 0x01900C9F, "armv8"),  # LDA, LDAEX
    (0x0F90FFF0, 0x0180FC90, "armv8"),  # STL
    (0x0F900FF0, 0x01800E90, "armv8"),  # STLEX
    (0x0FB00E10, 0x0EA00A00, "vfpv4"),  # VFMA, VFMS
    (0x0FB00E10, 0x0E900A00, "vfpv4"),  # VFNMA, VFNMS
    (0x0FBF0E50, 0x0EB60A40, "armv8"),  # VRINTR, VRINTZ
    (0x0FBF0ED0, 0x0EB70A40, "armv8"),  # VRINTX
    (0x0FBE0F50, 0x0EB20B40, "armv8"),  # VCVTB, VCVTT with double precision
    (0x0F000F00, 0x0E000900, "fphp"),
    (0x0F300F00, 0x0D100900, "fphp"),  # VLDR.16
    (0x0F300F00, 0x0D000900, "fphp"),  # VSTR.16
)
UNCONDITIONAL: Encodings = (
    (0xFF800E50, 0xFE000A00, "armv8"),  # VSEL
    (0xFFB00E10, 0xFE800A00, "armv8"),  # VMAXNM, VMINNM
    (0xFFBC0ED0, 0xFEB80A40, "armv8"),  # VRINTA, VRINTN, VRINTP, VRINTM
    (0xFFBC0E50, 0xFEBC0A40, "armv8"),  # VCVTA, VCVTN, VCVTP, VCVTM
    (0xFF900F10, 0xF2000C10, "vfpv4"),  # VFMA, VFMS
    (0xFF900F10, 0xF3000F10, "armv8"),  # VMAXNM, VMINNM
    (0xFFB30F10, 0xF3B20400, "armv8"),  # VRINTN, VRINTX
    (0xFFB30F10, 0xF3B20500, "armv8"),  # VRINTA, VRINTZ
    (0xFFB30E90, 0xF3B20680, "armv8"),  # VRINTM, VRINTP
    (0xFFB30C10, 0xF3B30000, "armv8"),  # VCVTA, VCVTN, VCVTP, VCVTM
    (0xFFB30F10, 0xF3B00300, "aes"),
    (0xFFB00F50, 0xF2A00E00, "pmull"),  # VMULL.P64
    (0xFFBF0FD0, 0xF3B902C0, "sha1"),  # SHA1H
    (0xFFBF0FD0, 0xF3BA0380, "sha1"),  # SHA1SU1
    (0xFFBF0FD0, 0xF3BA03C0, "sha2"),  # SHA256SU0
    (0xFF800F50, 0xF2000C40, "sha1"),
    (0xFF800F50, 0xF3000C40, "sha2"),
    (0xFFB00F00, 0xFC200D00, "asimddp"),  # VSDOT, VUDOT
    (0xFFB00F00, 0xFE200D00, "asimddp"),
)


def beyond(code: bytes, address: int, allowed: Collection[str]) -> list[tuple[int, str]]:
    """Address and feature of each instruction in `code`, which lies at `address`, that needs a feature not in `allowed`; the
    first MOST of them.

    Constants between the instructions are left out where an instruction of `code` loads them by their distance.
    """
    all_words = words(code)
    always = all_words >> 28 == 15
    constants = _constants(all_words)
    found = heapq.merge(
        *(
            matches(np.where(here & ~constants, all_words, np.uint32(0)), encodings, allowed)
            for encodings, here in ((CONDITIONAL, ~always), (UNCONDITIONAL, always))
        )
    )
    return [(address + 4 * place, feature) for place, feature in itertools.islice(found, MOST)]


# (mask, value, bits of the distance, bytes each counts, bytes read there): loads relative to PC, which is two words ahead; bit
# 23 is the distance's sign. ADR has its distance as 8 bits and a rotation; what it points to is read in up to 16 bytes.
_LOADS = (
    (0x0F7F0000, 0x051F0000, 12, 1, 4),  # LDR
    (0x0F3F0E00, 0x0D1F0A00, 8, 4, 8),  # VLDR
)
_ADR = ((0x0FFF0000, 0x028F0000, 1), (0x0FFF0000, 0x024F0000, -1))


def _constants(code: Words) -> npt.NDArray[np.bool_]:
    """Which words are loaded relative to PC, and so are no instructions."""
    found = np.zeros(len(code) + 4, np.bool_)
    places = np.arange(len(code), dtype=np.int64)

    def mark(chosen: npt.NDArray[np.bool_], distance: npt.NDArray[np.int64], size: int) -> None:
        start = (places[chosen] * 4 + 8 + distance) >> 2
        start = start[(start >= 0) & (start < len(code))]
        for step in range(size // 4):
            found[start + step] = True

    for mask, value, bits, unit, size in _LOADS:
        chosen = (code & np.uint32(mask)) == np.uint32(value)
        distance = (code[chosen] & np.uint32((1 << bits) - 1)).astype(np.int64) * unit
        mark(chosen, np.where(code[chosen] & np.uint32(1 << 23), distance, -distance), size)
    for mask, value, sign in _ADR:
        chosen = (code & np.uint32(mask)) == np.uint32(value)
        low, turn = (code[chosen] & np.uint32(0xFF)).astype(np.int64), (code[chosen] >> 8 & np.uint32(0xF)).astype(np.int64) * 2
        mark(chosen, sign * ((low >> turn | low << (32 - turn)) & 0xFFFFFFFF), 16)
    return found[: len(code)]


def attributes(section: bytes) -> dict[int, int]:
    """Tag -> value of the file-wide attributes with a number, {} where there are none or they cannot be read."""
    if section[:1] != b"A":
        return {}
    at, found = 1, dict[int, int]()
    while at + 4 < len(section):
        (length,) = struct.unpack_from("<I", section, at)
        vendor, _, body = section[at + 4 : at + length].partition(b"\0")
        if vendor == b"aeabi" and body[:1] == b"\x01" and len(body) >= 5:
            (size,) = struct.unpack_from("<I", body, 1)
            found |= _pairs(body[5:size])
        if length < 5:
            break
        at += length
    return found


def _pairs(data: bytes) -> dict[int, int]:
    found: dict[int, int] = {}
    at = 0
    while at < len(data):
        tag, at = _uleb(data, at)
        if tag == 32:  # Tag_compatibility has a number and a string
            _, at = _uleb(data, at)
        if tag in _TEXTS or (tag > 32 and tag % 2):
            end = data.find(b"\0", at)
            at = len(data) if end < 0 else end + 1
        else:
            found[tag], at = _uleb(data, at)
    return found


def _uleb(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(data[at : at + 5]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    return value, len(data)


def needs(tags: dict[int, int]) -> set[str]:
    """The features that attributes ask for."""
    return {feature for tag, steps in _NEEDS.items() for least, feature in steps if tags.get(tag, 0) >= least}
