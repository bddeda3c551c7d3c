"""Instructions beyond the baseline that run only behind a check of the processor: code that compilers link into every library.

Known by their own instructions, since a stripped library has no names. Sources: compiler-rt's and libgcc's lse.S, zig's
aarch64_outline_atomics.zig; LLVM
libunwind's Registers.hpp (`lazyGetVG`), DwarfInstructions.hpp (`stepWithDwarf`) and UnwindRegistersSave.S (`za_disable`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from tinyedge_targets.instructions.encodings import Words


def is_guarded(words: Words, place: int, feature: str) -> bool:
    """Whether the instruction at `place`, which needs `feature`, is one of those."""
    return feature in _GUARDS and any(guard(words, place) for guard in _GUARDS[feature])


def _outline_atomic(words: Words, place: int) -> bool:
    """`__aarch64_ldadd4_relax` and its kin: ADRP Xn; LDRB Wt, [Xn, #flag]; CBZ Wt, past this instruction.

    In zig's compiler-rt, which sets no such flag, the first two are MOV Wt, WZR.
    """
    if place < 2:
        return False
    adrp, load, test = (int(words[at]) if at >= 0 else 0 for at in range(place - 3, place))
    register = test & 31
    loaded = adrp & 0x9F000000 == 0x90000000 and load & 0xFFC00000 == 0x39400000 and load >> 5 & 31 == adrp & 31
    known = (loaded and load & 31 == register) or load == 0x2A1F03E0 | register
    return known and test & 0xFF800000 == 0x34000000 and test >> 5 & 0x3FFFF > 1


def _lazy_vector_length(words: Words, place: int) -> bool:
    """libunwind's CNTD X0: it runs when unwind information names the SVE register VG and the field that keeps VG is still zero.

    The value is stored (STR W0 or its copy, [Xn, #field]) right after, and before it LDR Wt, [Xn, #field]; CBZ or CBNZ Wt.
    """
    if words[place] != 0x04E0E3E0:
        return False
    stores = [word >> 10 & 0xFFF for word in words[place + 1 : place + 4].tolist() if word & 0xFFC00000 == 0xB9000000]
    before = words[max(0, place - 64) : place].tolist()
    return any(
        load & 0xFFC00000 == 0xB9400000 and load >> 10 & 0xFFF in stores and test & 0xFE00001F == 0x34000000 | load & 31
        for load, test in itertools.pairwise(before)
    )


def _tag_clearing(words: Words, place: int) -> bool:
    """libunwind's loop over a frame which unwind information marks as tagged: STG X, [X]; ADD X, X, #16; CMP X, end; B.LO."""
    if place + 4 > len(words):
        return False
    store, add, compare, branch = (int(word) for word in words[place : place + 4])
    register = store & 31
    return (
        store == 0xD9200800 | register << 5 | register
        and add == 0x91004000 | register << 5 | register
        and compare & 0xFFE0FFFF == 0xEB00001F | register << 5
        and branch == 0x54FFFFA3
    )


# __libunwind_Registers_arm64_za_disable, which libunwind calls where the kernel says that there is SME.
_ZA_DISABLE = np.array(
    [
        *(
            0xD53BD0B0,
            0xB40001F0,
            0x79401600,
            0x35000200,
            0xB9400E00,
            0x350001C0,
            0x79401200,
            0xB4000120,
            0xF9400210,
            0xB40000F0,
        ),
        *(
            0xAA1F03EF,
            0xE1206200,
            0x04305830,
            0x910005EF,
            0xEB0F001F,
            0x54FFFF81,
            0xD51BD0BF,
            0xD503447F,
            0xAA1F03E0,
            0xD65F03C0,
        ),
    ],
    np.uint32,
)


def _za_disable(words: Words, place: int) -> bool:
    starts = place - np.flatnonzero(words[place] == _ZA_DISABLE)
    return any(start >= 0 and np.array_equal(words[start : start + len(_ZA_DISABLE)], _ZA_DISABLE) for start in starts.tolist())


_GUARDS: dict[str, tuple[Callable[[Words, int], bool], ...]] = {
    "atomics": (_outline_atomic,),
    "sve": (_lazy_vector_length, _za_disable),
    "mte": (_tag_clearing,),
    "sme": (_za_disable,),
}
