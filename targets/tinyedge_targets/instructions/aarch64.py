"""A64 instructions beyond ARMv8.0-A, found by their bits in a whole section at once.

Encodings: Arm Architecture Reference Manual for A-profile (DDI 0487), chapter C4 "A64 Instruction Set Encoding", and its
supplements for SME (DDI 0616) and SVE (DDI 0584). Features have the names the Linux kernel gives them in /proc/cpuinfo
(Documentation/arch/arm64/elf_hwcaps.rst); where it has none, the Arm name in lower case.

Instructions of the hint space (PACIASP, BTI, ...) are no-operations on older processors and so belong to the baseline.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection

import numpy as np

from tinyedge_targets.instructions.encodings import BASE, MOST, Encodings, matches, words
from tinyedge_targets.instructions.guarded import is_guarded

# Rows for BASE except part of a group that follows. The wide rows at the end of a group are encodings that ARMv8.0-A leaves
# unallocated, whatever later came to use them.
ENCODINGS: Encodings = (
    # Reserved in v8.0: SME, SVE.
    (0x9E000000, 0x80000000, "sme"),
    (0xFFE0FC00, 0x44807800, "svei8mm"),  # USDOT
    (0xFFE0F800, 0x44A01800, "svei8mm"),  # USDOT, SUDOT by element
    (0xFF80F800, 0x44800000, "sve"),  # SDOT, UDOT
    (0xFF000000, 0x44000000, "sve2"),
    (0xFF20FC00, 0x45009800, "svei8mm"),  # SMMLA, UMMLA, USMMLA
    (0xFF000000, 0x45000000, "sve2"),
    (0xFFE0FC00, 0x6460E400, "svebf16"),  # BFMMLA
    (0x1E000000, 0x04000000, "sve"),  # and what SVE2 and later added inside SVE's own groups
    # Data processing, immediate.
    (0xBFC00000, 0x91800000, "mte"),  # ADDG, SUBG
    (0x7FC00000, 0x11C00000, "cssc"),  # SMAX, UMAX, SMIN, UMIN
    # Branches, exceptions, system.
    (0xFF000010, 0x54000010, "hbc"),  # BC.cond
    (0x7E000000, 0x74000000, "cmpbr"),
    (0xFFC0001F, 0x5500001F, "pauth_lr"),  # RETAASPPC, RETABSPPC
    (0xFE1FF800, 0xD61F0800, "paca"),  # BRAA, BLRAA, RETAA, ERETAA and their kin
    (0xFFFFFFC0, 0xD5031000, "wfxt"),
    (0xFFFFF0FF, 0xD500401F, "flagm"),  # CFINV
    (0xFFFFF0FF, 0xD500403F, "flagm2"),  # XAFLAG
    (0xFFFFF0FF, 0xD500405F, "flagm2"),  # AXFLAG
    (0xFFFFF0FF, 0xD503401F, "uao"),
    (0xFFFFF0FF, 0xD503403F, "ssbs"),  # MSR SSBS
    (0xFFFFF0FF, 0xD503405F, "dit"),  # MSR DIT
    (0xFFFFF0FF, 0xD503407F, "sme"),  # SMSTART, SMSTOP
    (0xFFFFF0FF, 0xD503409F, "mte"),  # MSR TCO
    (0xFFFFF0FF, 0xD50330FF, "sb"),
    (0xFFFFF3FF, 0xD503323F, "xs"),  # DSB nXS
    (0xFFFFFFFF, 0xD503307F, "tme"),  # TCOMMIT
    (0xFFFFFEE0, 0xD5233060, "tme"),  # TSTART, TTEST
    (0xFFE0001F, 0xD4600000, "tme"),  # TCANCEL
    (0xFFFFFFE0, 0xD50B7C20, "dcpop"),  # DC CVAP
    (0xFFFFFFE0, 0xD50B7D20, "dcpodp"),  # DC CVADP
    (0xFFFFFFE0, 0xD50B7460, "mte"),  # DC GVA
    (0xFFFFFFE0, 0xD50B7480, "mte"),  # DC GZVA
    (0xFFFFFF80, 0xD50B7380, "specres"),  # CFP, DVP, COSP, CPP
    (0xFFFFFFC0, 0xD53B2400, "rng"),  # MRS RNDR, RNDRRS
    (0xFFDFFFE0, 0xD51B42A0, "dit"),
    (0xFFDFFFE0, 0xD51B42C0, "ssbs"),
    (0xFFDFFFE0, 0xD51B42E0, "mte"),  # TCO
    (0xFFDFFFE0, 0xD51B4240, "sme"),  # SVCR
    (0xFFDFFFE0, 0xD51BD0A0, "sme"),  # TPIDR2_EL0
    (0xFFDFFFE0, 0xD51B4440, "fpmr"),
    (0xFFF80000, 0xD5480000, "d128"),  # SYSP
    (0xFFD00000, 0xD5500000, "d128"),  # MSRR, MRRS
    # Loads and stores.
    (0x3FA07C00, 0x08A07C00, "atomics"),  # CAS
    (0xBFA07C00, 0x08207C00, "atomics"),  # CASP
    (0x3FA08000, 0x08800000, "lor"),  # LDLAR, STLLR
    (0x3F000000, 0x09000000, "lsui"),
    (0xBFBFFC00, 0x0D018400, "lrcpc3"),  # LDAP1, STL1
    (0xFF200400, 0xF8200400, "paca"),  # LDRAA, LDRAB
    (0x3FFFFC00, 0x38BFC000, "lrcpc"),  # LDAPR
    (0xFFFFFC00, 0xF83FD000, "ls64"),  # LD64B
    (0xFFFFFC00, 0xF83F9000, "ls64"),  # ST64B
    (0xFFE0EC00, 0xF820A000, "ls64_v"),  # ST64BV, ST64BV0
    (0x3F200C00, 0x38200000, "atomics"),  # LDADD, LDCLR, LDEOR, LDSET, LDSMAX, ..., SWP
    (0x3F200C00, 0x3C200000, "lsfe"),
    (0xFE400000, 0x68000000, "mte"),  # STGP
    (0xFA000000, 0xE8000000, "lsui"),
    (0xFF200000, 0xD9200000, "mte"),  # LDG, STG, ST2G, STZG, ...
    (0xFF200C00, 0x19200000, "lse128"),  # LDCLRP, LDSETP, SWPP
    (0x3F200C00, 0x19000000, "ilrcpc"),  # LDAPUR, STLUR
    (0x3B200C00, 0x19000400, "mops"),
    (0x3B000000, 0x19000000, "lrcpc3"),
    # Data processing, register.
    (0x7FE0F000, 0x1AC04000, "crc32"),
    (0x7FE0F000, 0x1AC05000, "crc32"),
    (0xFFE0FC00, 0x9AC03000, "paca"),  # PACGA
    (0xFFE0F800, 0x9AC01000, "mte"),  # IRG, GMI
    (0xDFE0FC00, 0x9AC00000, "mte"),  # SUBP, SUBPS
    (0x7FE0F000, 0x1AC06000, "cssc"),
    (0xFFFF0000, 0xDAC10000, "paca"),
    (0x7FFFF800, 0x5AC01800, "cssc"),  # CTZ, CNT
    (0x7FFFFC00, 0x5AC02000, "cssc"),  # ABS
    (0xFFE07C10, 0xBA000400, "flagm"),  # RMIF
    (0xFFFFBC1F, 0x3A00080D, "flagm"),  # SETF8, SETF16
    (0xBFE0E000, 0x9A002000, "cpa"),  # ADDPT, SUBPT
    (0xFFE00000, 0x9B600000, "cpa"),  # MADDPT, MSUBPT
    # Cryptography.
    (0xFFFFCC00, 0x4E284800, "aes"),
    (0xBFE0FC00, 0x0EE0E000, "pmull"),  # of 64 bits; PMULL of 8 bits is base
    (0xFFE0CC00, 0x5E000000, "sha1"),
    (0xFFFFEC00, 0x5E280800, "sha1"),  # SHA1H, SHA1SU1
    (0xFFE0CC00, 0x5E004000, "sha2"),
    (0xFFFFFC00, 0x5E282800, "sha2"),  # SHA256SU0
    (0xFFC08000, 0xCE000000, "sha3"),  # EOR3, BCAX (and, in the second half, SM3)
    (0xFFE0FC00, 0xCE608C00, "sha3"),  # RAX1
    (0xFFE00000, 0xCE800000, "sha3"),  # XAR
    (0xFFE0F800, 0xCE608000, "sha512"),  # SHA512H, SHA512H2
    (0xFFE0FC00, 0xCE608800, "sha512"),  # SHA512SU1
    (0xFFFFFC00, 0xCEC08000, "sha512"),  # SHA512SU0
    (0xFFFFFC00, 0xCEC08400, "sm4"),  # SM4E
    (0xFFE0FC00, 0xCE60C800, "sm4"),  # SM4EKEY
    (0xFF000000, 0xCE000000, "sm3"),
    # Advanced SIMD, three registers of the same type.
    (0xBF20F400, 0x2E008400, "asimdrdm"),  # SQRDMLAH, SQRDMLSH
    (0xFF20F400, 0x7E008400, "asimdrdm"),
    (0x9FE0FC00, 0x0E809400, "asimddp"),  # SDOT, UDOT
    (0xBFE0FC00, 0x0E809C00, "i8mm"),  # USDOT
    (0x9FE0FC00, 0x0E80A400, "i8mm"),  # SMMLA, UMMLA
    (0xBFE0FC00, 0x0E80AC00, "i8mm"),  # USMMLA
    (0xBFE0FC00, 0x2E40FC00, "bf16"),  # BFDOT
    (0xBFE0FC00, 0x2E40EC00, "bf16"),  # BFMMLA
    (0xBFE0FC00, 0x2EC0FC00, "bf16"),  # BFMLALB, BFMLALT
    (0xBF20E400, 0x2E00C400, "fcma"),  # FCMLA
    (0xBF20EC00, 0x2E00E400, "fcma"),  # FCADD
    (0x9F208400, 0x0E008400, "fp8"),  # the rest of "three same extra"
    (0xBF60FC00, 0x0E20EC00, "asimdfhm"),  # FMLAL, FMLSL
    (0xBF60FC00, 0x2E20CC00, "asimdfhm"),  # FMLAL2, FMLSL2
    (0x9F60C400, 0x0E400400, "asimdhp"),
    (0xDF60C400, 0x5E400400, "asimdhp"),
    # Advanced SIMD by element.
    (0xBF00D400, 0x2F00D000, "asimdrdm"),
    (0xFF00D400, 0x7F00D000, "asimdrdm"),
    (0x9FC0F400, 0x0F80E000, "asimddp"),  # SDOT, UDOT
    (0xBF40F400, 0x0F00F000, "i8mm"),  # SUDOT, USDOT
    (0xBF40F400, 0x0F40F000, "bf16"),  # BFDOT, BFMLALB, BFMLALT
    (0xBFC09400, 0x2F401000, "fcma"),  # FCMLA
    (0xBFC09400, 0x2F801000, "fcma"),
    (0xBFC0B400, 0x0F800000, "asimdfhm"),  # FMLAL, FMLSL
    (0xBFC0B400, 0x2F808000, "asimdfhm"),  # FMLAL2, FMLSL2
    (0xBF00F400, 0x0F000000, "fp8"),
    (0xBFC0B400, 0x0F001000, "asimdhp"),  # FMLA, FMLS of half precision
    (0xFFC0B400, 0x5F001000, "asimdhp"),
    (0x9FC0F400, 0x0F009000, "asimdhp"),  # FMUL, FMULX
    (0xDFC0F400, 0x5F009000, "asimdhp"),
    # Advanced SIMD: two registers, across lanes, pairs, immediates.
    (0x9F7E0C00, 0x0E780800, "asimdhp"),
    (0xDF7E0C00, 0x5E780800, "asimdhp"),
    (0xBF7FFC00, 0x0E30C800, "asimdhp"),  # FMAXNMV, FMINNMV
    (0xBF7FFC00, 0x0E30F800, "asimdhp"),  # FMAXV, FMINV
    (0xFF7FFC00, 0x5E30C800, "asimdhp"),  # FMAXNMP, FMINNMP
    (0xFFFFFC00, 0x5E30D800, "asimdhp"),  # FADDP
    (0xFF7FFC00, 0x5E30F800, "asimdhp"),  # FMAXP, FMINP
    (0xBFF8FC00, 0x0F00FC00, "asimdhp"),  # FMOV, immediate
    (0x9FF0FC00, 0x0F10E400, "asimdhp"),  # SCVTF, UCVTF, fixed point
    (0x9FF0FC00, 0x0F10FC00, "asimdhp"),  # FCVTZS, FCVTZU, fixed point
    (0xDFF0FC00, 0x5F10E400, "asimdhp"),
    (0xDFF0FC00, 0x5F10FC00, "asimdhp"),
    (0x9FBFEC00, 0x0E21E800, "frint"),  # FRINT32Z and its kin
    (0xBFFFFC00, 0x0EA16800, "bf16"),  # BFCVTN
    # Floating point.
    (0xFFFFFC00, 0x1E7E0000, "jscvt"),
    (0xFFFFFC00, 0x1E634000, "bf16"),  # BFCVT
    (0xFFBE7C00, 0x1E284000, "frint"),
    (0xFFFF7C00, 0x1EE24000, BASE),  # FCVT from half to single and double precision
    (0x7FE00000, 0x1EC00000, "fphp"),
    (0x7FE00000, 0x1EE00000, "fphp"),
    (0xFFC00000, 0x1FC00000, "fphp"),
)


def beyond(code: bytes, address: int, allowed: Collection[str]) -> list[tuple[int, str]]:
    """Address and feature of each instruction in `code`, which lies at `address`, that needs a feature not in `allowed`; the
    first MOST of them.

    Left out is what runs only behind a check of the processor (instructions.guarded).
    """
    all_words = words(code)
    found = matches(all_words, ENCODINGS, allowed)
    unguarded = ((address + 4 * place, feature) for place, feature in found if not is_guarded(all_words, place, feature))
    return list(itertools.islice(unguarded, MOST))


def targets(code: bytes, address: int) -> set[int]:
    """Where the direct branches and calls in `code` lead."""
    all_words = words(code).astype(np.int64)
    places = address + 4 * np.arange(len(all_words), dtype=np.int64)
    found: set[int] = set()
    for mask, value, low, bits in _BRANCHES:
        chosen = (all_words & mask) == value
        field = (all_words[chosen] >> low) & ((1 << bits) - 1)
        signed = field - ((field >> (bits - 1)) << bits)
        found.update((places[chosen] + 4 * signed).tolist())
    return found


# (mask, value, lowest bit and number of bits of the word offset) of B and BL, B.cond, CBZ and CBNZ, TBZ and TBNZ.
_BRANCHES = (
    (0x7C000000, 0x14000000, 0, 26),
    (0xFF000000, 0x54000000, 5, 19),
    (0x7E000000, 0x34000000, 5, 19),
    (0x7E000000, 0x36000000, 5, 14),
)


def slot(code: bytes, address: int) -> int | None:
    """The pointer that a procedure linkage stub at the start of `code` jumps through (ADRP X16; LDR X17, [X16, #offset])."""
    for place, (adrp, load) in enumerate(itertools.pairwise(words(code[:12]).tolist())):
        if adrp & 0x9F00001F == 0x90000010 and load & 0xFFC003FF == 0xF9400211:
            pages = (adrp >> 5 & 0x7FFFF) << 2 | adrp >> 29 & 3
            pages -= (pages >> 20) << 21
            base = (address + 4 * place & ~0xFFF) + (pages << 12)
            return int(base + (load >> 10 & 0xFFF) * 8)
    return None
