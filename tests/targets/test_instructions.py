"""Extensions are told by their bits exactly: against zig's assembler, LLVM's disassembler, and the processors zig knows."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tinyedge_targets.elf import Elf
from tinyedge_targets.instructions import aarch64, arm, encodings, processors, x86_64
from tinyedge_targets.instructions.reach import reached

elftools = pytest.importorskip("elftools.elf.elffile")
pytest.importorskip("ziglang")
from tiny_wheels import GLIBC, compiled  # noqa: E402  (its libraries need ziglang)

ADDRESS = 0x1000


def code_of(lines: Iterable[str], machine: str = "aarch64", cpu: str = "generic") -> bytes:
    """The code that zig assembles these instructions to."""
    source = ".text\n" + "\n".join(lines) + "\n"
    if machine == "x86_64":
        source = ".intel_syntax noprefix\n" + source
    data = compiled(source, "-c", machine=machine, cpu=cpu, suffix="s")
    return text_of(data)


# By feature: zig's -mcpu that has it, and what it can then assemble.
EXTENSIONS = {
    "crc32": ("generic+crc", ["crc32b w0, w1, w2", "crc32x w0, w1, x2", "crc32cb w0, w1, w2", "crc32cx w0, w1, x2"]),
    "atomics": (
        "generic+lse",
        [
            *("cas w0, w1, [x2]", "casalb w0, w1, [x2]", "caspal x0, x1, x2, x3, [x4]", "casp w0, w1, w2, w3, [x4]"),
            *("ldadd w0, w1, [x2]", "ldaddal x0, x1, [sp]", "stclrlb w0, [x1]", "ldeorh w0, w1, [x2]", "ldsmax x0, x1, [x2]"),
            *("swp w0, w1, [x2]", "swpalb w0, w1, [x2]", "ldumin w0, w1, [x2]"),
        ],
    ),
    "lor": ("generic+lor", ["ldlar x0, [x1]", "stllrb w0, [x1]"]),
    "asimdrdm": (
        "generic+rdm",
        [
            *("sqrdmlah v0.4s, v1.4s, v2.4s", "sqrdmlsh v0.4h, v1.4h, v2.4h", "sqrdmlah s0, s1, s2"),
            *("sqrdmlah v0.8h, v1.8h, v2.h[3]", "sqrdmlsh h0, h1, v2.h[7]"),
        ],
    ),
    "fphp": (
        "generic+fullfp16",
        [
            *(
                "fadd h0, h1, h2",
                "fmadd h0, h1, h2, h3",
                "fcmp h0, #0.0",
                "fcmp h0, h1",
                "fccmp h0, h1, #0, eq",
                "fsqrt h0, h1",
            ),
            *("fcsel h0, h1, h2, eq", "fmov h0, #1.0", "fmov w0, h1", "scvtf h0, x1", "fcvtzu x0, h1", "fcvtzs w0, h1, #3"),
        ],
    ),
    "asimdhp": (
        "generic+fullfp16",
        [
            *("fadd v0.8h, v1.8h, v2.8h", "fmla v0.4h, v1.4h, v2.4h", "fmla v0.8h, v1.8h, v2.h[5]", "fmul h0, h1, v2.h[1]"),
            *(
                "fmulx v0.4h, v1.4h, v2.h[1]",
                "fcmgt v0.8h, v1.8h, #0.0",
                "fabs v0.8h, v1.8h",
                "ucvtf v0.8h, v1.8h",
                "fabd h0, h1, h2",
            ),
            *("fmaxnmv h0, v1.8h", "fminv h0, v1.4h", "faddp h0, v1.2h", "fmaxnmp h0, v1.2h", "fmov v0.8h, #1.0"),
            *("scvtf v0.8h, v1.8h, #3", "fcvtzs h0, h1, #3", "frecpe h0, h1", "fdiv v0.4h, v1.4h, v2.4h"),
        ],
    ),
    "asimddp": ("generic+dotprod", ["sdot v0.4s, v1.16b, v2.16b", "udot v0.2s, v1.8b, v2.8b", "sdot v0.4s, v1.16b, v2.4b[3]"]),
    "asimdfhm": (
        "generic+fp16fml",
        ["fmlal v0.4s, v1.4h, v2.4h", "fmlsl2 v0.2s, v1.2h, v2.2h", "fmlal2 v0.4s, v1.4h, v2.h[7]"],
    ),
    "fcma": (
        "generic+complxnum",
        ["fcmla v0.4s, v1.4s, v2.4s, #90", "fcadd v0.2d, v1.2d, v2.2d, #270", "fcmla v0.4s, v1.4s, v2.s[1], #180"],
    ),
    "jscvt": ("generic+jsconv", ["fjcvtzs w0, d1"]),
    "lrcpc": ("generic+rcpc", ["ldapr x0, [x1]", "ldaprb w0, [x1]"]),
    "ilrcpc": ("generic+rcpc_immo", ["ldapur x0, [x1, #8]", "stlurh w0, [x1, #-3]", "ldapursw x0, [x1]"]),
    "paca": (
        "generic+pauth",
        [
            "pacia x0, x1",
            "autdzb x0",
            "xpaci x0",
            "pacga x0, x1, x2",
            "braa x0, x1",
            "blrabz x0",
            "retaa",
            "ldraa x0, [x1, #8]!",
        ],
    ),
    "flagm": ("generic+flagm", ["cfinv", "rmif x1, #3, #15", "setf8 w1", "setf16 w1"]),
    "flagm2": ("generic+altnzcv", ["xaflag", "axflag"]),
    "frint": ("generic+fptoint", ["frint32z s0, s1", "frint64x d0, d1", "frint32x v0.4s, v1.4s", "frint64z v0.2d, v1.2d"]),
    "i8mm": (
        "generic+i8mm",
        [
            *("smmla v0.4s, v1.16b, v2.16b", "ummla v0.4s, v1.16b, v2.16b", "usmmla v0.4s, v1.16b, v2.16b"),
            *("usdot v0.4s, v1.16b, v2.16b", "usdot v0.2s, v1.8b, v2.4b[1]", "sudot v0.4s, v1.16b, v2.4b[1]"),
        ],
    ),
    "bf16": (
        "generic+bf16",
        [
            *("bfdot v0.4s, v1.8h, v2.8h", "bfmmla v0.4s, v1.8h, v2.8h", "bfmlalb v0.4s, v1.8h, v2.8h", "bfcvt h0, s1"),
            *("bfdot v0.4s, v1.8h, v2.2h[1]", "bfmlalt v0.4s, v1.8h, v2.h[1]", "bfcvtn v0.4h, v1.4s", "bfcvtn2 v0.8h, v1.4s"),
        ],
    ),
    "aes": ("generic+aes", ["aese v0.16b, v1.16b", "aesd v0.16b, v1.16b", "aesmc v0.16b, v1.16b", "aesimc v0.16b, v1.16b"]),
    "pmull": ("generic+aes", ["pmull v0.1q, v1.1d, v2.1d", "pmull2 v0.1q, v1.2d, v2.2d"]),
    "sha1": (
        "generic+sha2",
        ["sha1c q0, s1, v2.4s", "sha1m q0, s1, v2.4s", "sha1su0 v0.4s, v1.4s, v2.4s", "sha1h s0, s1", "sha1su1 v0.4s, v1.4s"],
    ),
    "sha2": (
        "generic+sha2",
        ["sha256h q0, q1, v2.4s", "sha256h2 q0, q1, v2.4s", "sha256su0 v0.4s, v1.4s", "sha256su1 v0.4s, v1.4s, v2.4s"],
    ),
    "sha3": (
        "generic+sha3",
        [
            *("eor3 v0.16b, v1.16b, v2.16b, v3.16b", "bcax v0.16b, v1.16b, v2.16b, v3.16b"),
            *("rax1 v0.2d, v1.2d, v2.2d", "xar v0.2d, v1.2d, v2.2d, #3"),
        ],
    ),
    "sha512": ("generic+sha3", ["sha512h q0, q1, v2.2d", "sha512su0 v0.2d, v1.2d", "sha512su1 v0.2d, v1.2d, v2.2d"]),
    "sm3": (
        "generic+sm4",
        ["sm3ss1 v0.4s, v1.4s, v2.4s, v3.4s", "sm3tt1a v0.4s, v1.4s, v2.s[1]", "sm3partw1 v0.4s, v1.4s, v2.4s"],
    ),
    "sm4": ("generic+sm4", ["sm4e v0.4s, v1.4s", "sm4ekey v0.4s, v1.4s, v2.4s"]),
    "sve": (
        "generic+sve",
        [
            "ptrue p0.s",
            "ld1w {z0.s}, p0/z, [x0]",
            "fmla z0.s, p0/m, z1.s, z2.s",
            "sdot z0.s, z1.b, z2.b",
            "whilelo p0.s, x0, x1",
            "cntd x1",
        ],
    ),
    "sve2": ("generic+sve2", ["sqrdmlah z0.s, z1.s, z2.s", "smlalb z0.s, z1.h, z2.h", "tbx z0.b, z1.b, z2.b"][:2]),
    "svei8mm": ("generic+sve+i8mm", ["smmla z0.s, z1.b, z2.b", "usdot z0.s, z1.b, z2.b", "sudot z0.s, z1.b, z2.b[1]"]),
    "svebf16": ("generic+sve+bf16", ["bfmmla z0.s, z1.h, z2.h"]),
    "sme": (
        "generic+sme",
        ["smstart", "smstop za", "zero {za}", "fmopa za0.s, p0/m, p1/m, z0.s, z1.s", "ldr za[w12, 0], [x0]"],
    ),
    "mte": (
        "generic+mte",
        [
            "irg x0, x1",
            "addg x0, x1, #16, #3",
            "subps x0, x1, x2",
            "stg x0, [x1]",
            "ldg x0, [x1]",
            "stgp x0, x1, [x2]",
            "gmi x0, x1, x2",
        ],
    ),
    "sb": ("generic+sb", ["sb"]),
    "dcpop": ("generic+ccpp", ["dc cvap, x0"]),
    "dcpodp": ("generic+ccdp", ["dc cvadp, x0"]),
    "specres": ("generic+predres", ["cfp rctx, x0", "dvp rctx, x0", "cpp rctx, x0"]),
    "rng": ("generic+rand", ["mrs x0, rndr", "mrs x0, rndrrs"]),
    "dit": ("generic+dit", ["msr dit, #1", "mrs x0, dit"]),
    "ssbs": ("generic+ssbs", ["msr ssbs, #1", "mrs x0, ssbs"]),
    "wfxt": ("generic+wfxt", ["wfet x0", "wfit x0"]),
    "xs": ("generic+xs", ["dsb synxs"]),
    "cssc": ("generic+cssc", ["smax w0, w1, w2", "umin x0, x1, #3", "ctz w0, w1", "cnt x0, x1", "abs x0, x1"]),
    "hbc": ("generic+hbc", ["bc.eq .+8"]),
    "mops": ("generic+mops", ["cpyfp [x0]!, [x1]!, x2!", "setp [x0]!, x1!, x2"]),
    "ls64": ("generic+ls64", ["ld64b x0, [x1]", "st64b x0, [x1]"]),
    "lse128": ("generic+lse128", ["swpp x0, x1, [x2]", "ldclrp x0, x1, [x2]"]),
}
# Of ARMv8.0-A, among them the neighbours of what is above, and hints that older processors ignore.
PLAIN = [
    *(
        "paciasp",
        "autiasp",
        "pacia1716",
        "xpaclri",
        "bti c",
        "hint #16",
        "csdb",
        "yield",
        "dmb ish",
        "dsb sy",
        "isb",
        "wfe",
        "clrex",
    ),
    *("ldxr w0, [x1]", "stlxr w0, w1, [x2]", "ldaxp x0, x1, [x2]", "ldar x0, [x1]", "stlrb w0, [x1]", "ldtr x0, [x1]"),
    *("ldr x0, [x1, x2]", "ldr q0, [x1, w2, sxtw #4]", "ldur d0, [x1, #3]", "stnp x0, x1, [x2]", "ldpsw x0, x1, [x2]"),
    *(
        "prfm pldl1keep, [x0]",
        "prfum pldl1keep, [x0]",
        "ldr h0, [x1]",
        "str b0, [x1, #3]",
        "ld1 {v0.h}[3], [x0]",
        "ld4r {v0.8h-v3.8h}, [x0]",
    ),
    *(
        "fcvt s0, h1",
        "fcvt h0, s1",
        "fcvt d0, h1",
        "fcvtl v0.4s, v1.4h",
        "fcvtn v0.4h, v1.4s",
        "frinta s0, s1",
        "frintx v0.4s, v1.4s",
    ),
    *(
        "pmull v0.8h, v1.8b, v2.8b",
        "sqrdmulh v0.4s, v1.4s, v2.4s",
        "sqrdmulh v0.4s, v1.4s, v2.s[1]",
        "fmla v0.4s, v1.4s, v2.s[1]",
    ),
    *("fmulx d0, d1, d2", "fmaxnmv s0, v1.4s", "faddp d0, v1.2d", "addp d0, v1.2d", "fmov v0.2d, #1.0", "fmov v0.4s, #1.0"),
    *(
        "scvtf v0.4s, v1.4s, #3",
        "fcvtzs s0, s1, #3",
        "fmov x0, v1.d[1]",
        "fcvtzs w0, s1",
        "fccmp s0, s1, #0, eq",
        "fcsel d0, d1, d2, eq",
    ),
    *(
        "tbl v0.16b, {v1.16b}, v2.16b",
        "zip1 v0.8h, v1.8h, v2.8h",
        "ext v0.16b, v1.16b, v2.16b, #3",
        "dup v0.4s, w1",
        "ins v0.h[1], w2",
    ),
    *(
        "adc x0, x1, x2",
        "ccmp x0, x1, #0, eq",
        "udiv w0, w1, w2",
        "lslv x0, x1, x2",
        "rbit x0, x1",
        "clz x0, x1",
        "madd x0, x1, x2, x3",
    ),
    *(
        "umulh x0, x1, x2",
        "add x0, x1, #4095, lsl #12",
        "bfm x0, x1, #3, #5",
        "extr x0, x1, x2, #3",
        "b.eq .+8",
        "cbz x0, .+8",
        "br x0",
    ),
    *(
        "blr x0",
        "ret",
        "tbz x0, #40, .+8",
        "svc #0",
        "brk #1",
        "mrs x0, tpidr_el0",
        "mrs x0, fpcr",
        "dc zva, x0",
        "dc civac, x0",
        "ic ivau, x0",
    ),
    *(
        "cnt v0.8b, v1.8b",
        "rev64 v0.8h, v1.8h",
        "saddlv s0, v1.8h",
        "sqxtn v0.8b, v1.8h",
        "mla v0.4s, v1.4s, v2.s[1]",
        "udf #0",
    ),
]


@pytest.mark.parametrize("feature", EXTENSIONS)
def test_each_extension_is_told_by_name(feature: str) -> None:
    cpu, lines = EXTENSIONS[feature]
    found = aarch64.beyond(code_of(lines, cpu=cpu), ADDRESS, ())
    assert found == [(ADDRESS + 4 * place, feature) for place in range(len(lines))]
    assert aarch64.beyond(code_of(lines, cpu=cpu), ADDRESS, {feature}) == []


def test_armv8_0_is_no_extension() -> None:
    code = code_of(PLAIN)
    assert len(code) == 4 * len(PLAIN)
    assert [PLAIN[(address - ADDRESS) // 4] for address, _ in aarch64.beyond(code, ADDRESS, ())] == []


PROGRAM = """
#include <math.h>
#include <stdatomic.h>
_Atomic int counter;
int count(int by) { return atomic_fetch_add(&counter, by); }
float sum(const float *x, int n) { float s = 0; for (int i = 0; i < n; i++) s += fabsf(x[i]) * x[i]; return s; }
int dot(const signed char *x, const signed char *y, int n) {
  int s = 0;
  for (int i = 0; i < n; i++) s += x[i] * y[i];
  return s;
}
void half(_Float16 *x, int n) { for (int i = 0; i < n; i++) x[i] = x[i] * x[i] + 1; }
"""


def text_of(data: bytes) -> bytes:
    """The code of an object file."""
    content: bytes = elftools.ELFFile(io.BytesIO(data)).get_section_by_name(".text").data()
    return content


@pytest.mark.parametrize(
    ("cpu", "needed"),
    [
        ("generic", set()),
        ("cortex_a53", set()),
        ("generic+v8_1a", {"atomics"}),
        ("generic+v8_2a+dotprod", {"atomics", "asimddp"}),
        ("cortex_a76", {"atomics", "asimddp", "asimdhp", "fphp"}),
    ],
)
def test_compiled_code_needs_what_its_processor_adds(cpu: str, needed: set[str]) -> None:
    code = text_of(compiled(PROGRAM, "-c", "-O3", "-ffast-math", cpu=cpu))
    assert {feature for _, feature in aarch64.beyond(code, ADDRESS, ())} == needed


# LLVM's own view of random words: those only its newest architecture decodes are extensions, those the oldest decodes are not.
LLVM_FEATURES = (
    "+v9.3a,+crc,+lse,+rdm,+fullfp16,+dotprod,+fp16fml,+complxnum,+jsconv,+rcpc,+rcpc-immo,+pauth,+i8mm,+bf16,+sha2,+sha3,+aes,"
    "+sm4,+fptoint,+flagm,+mte,+lor,+mops,+hbc,+ls64,+wfxt,+xs,+sb,+tme,+sme,+sve,+sve2"
)
SYSTEM_SPACE = (0xFFC00000, 0xD5000000)  # where LLVM writes numbers for what it does not know


def disassembled(words: np.ndarray, attributes: str, folder: Path) -> np.ndarray:
    """Which words LLVM's disassembler takes for instructions of a generic processor with these attributes."""
    (folder / "x.o").write_bytes(compiled(".text\n" + "\n".join(f".inst {word}" for word in words), "-c", suffix="s"))
    command = ["llvm-objdump", "-d", "--no-show-raw-insn", "--no-leading-addr", f"--mattr={attributes}", "x.o"]
    text = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    lines = [line for line in text.splitlines() if line.startswith((" ", "\t"))]
    assert len(lines) == len(words)
    return np.array(["<unknown>" not in line for line in lines])


@pytest.mark.skipif(shutil.which("llvm-objdump") is None, reason="needs llvm-objdump")
def test_random_words_are_extensions_where_llvm_says_so(tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    parts = [chance.integers(0, 1 << 32, 20_000, dtype=np.uint32)]
    for mask, value, _ in aarch64.ENCODINGS:
        inside = (chance.integers(0, 1 << 32, 60, dtype=np.uint32) & np.uint32(~mask & 0xFFFFFFFF)) | np.uint32(value)
        bits = np.array([bit for bit in range(32) if mask >> bit & 1], np.uint32)
        parts += [inside, inside ^ (np.uint32(1) << chance.choice(bits, len(inside)))]
    words = np.unique(np.concatenate(parts))
    words = words[(words & np.uint32(SYSTEM_SPACE[0])) != np.uint32(SYSTEM_SPACE[1])]
    base = disassembled(words, "", tmp_path)
    if base.mean() > 0.6:
        pytest.skip("this llvm-objdump decodes extensions unasked")
    newest = disassembled(words, LLVM_FEATURES, tmp_path)
    found = np.zeros(len(words), np.bool_)
    found[[address // 4 for address, _ in aarch64.beyond(words.tobytes(), 0, ())]] = True
    assert [hex(word) for word in words[base & found]] == []
    assert [hex(word) for word in words[newest & ~base & ~found]] == []
    assert (newest & ~base).sum() > 2000


def features_in_zig(cpu: str) -> set[str]:
    """zig's own names of what a processor has."""
    command = [sys.executable, "-m", "ziglang", "build-obj", "--show-builtin", "-target", GLIBC["aarch64"], "-mcpu", cpu]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    listed = re.search(r"Target\.aarch64\.featureSet\(&\.\{(.*?)\}\)", text, re.S)
    assert listed is not None
    return set(re.findall(r"\.(\w+),", listed[1]))


ZIG_NAMES = {
    "crc32": "crc",
    "atomics": "lse",
    "asimdrdm": "rdm",
    "lor": "lor",
    "dcpop": "ccpp",
    "dcpodp": "ccdp",
    "fcma": "complxnum",
    "jscvt": "jsconv",
    "lrcpc": "rcpc",
    "ilrcpc": "rcpc_immo",
    "paca": "pauth",
    "asimddp": "dotprod",
    "flagm": "flagm",
    "flagm2": "altnzcv",
    "dit": "dit",
    "frint": "fptoint",
    "sb": "sb",
    "specres": "predres",
    "ssbs": "ssbs",
    "bf16": "bf16",
    "i8mm": "i8mm",
    "wfxt": "wfxt",
    "xs": "xs",
    "fphp": "fullfp16",
    "asimdhp": "fullfp16",
    "asimdfhm": "fp16fml",
    "sve": "sve",
    "sve2": "sve2",
    "mte": "mte",
    "sme": "sme",
    "rng": "rand",
}


@pytest.mark.parametrize("cpu", processors.AARCH64)
def test_processors_have_what_zig_says(cpu: str) -> None:
    in_zig = features_in_zig(cpu)
    ours = processors.AARCH64[cpu] - {"svei8mm", "svebf16"}
    assert ours == {feature for feature, name in ZIG_NAMES.items() if name in in_zig}
    assert {"svei8mm", "svebf16"} <= processors.AARCH64[cpu] or not {"sve", "i8mm"} <= ours


def test_cryptography_taken_away_changes_no_processor() -> None:
    assert processors.features_of("aarch64", "cortex_a72-aes-sha2") == {"crc32"}
    assert processors.features_of("aarch64", "cortex_a72-crc") is None
    assert processors.features_of("aarch64", "cortex_a999") is None


def test_the_unwinder_that_zig_links_runs_its_extensions_behind_checks() -> None:
    source = "extern int _Unwind_RaiseException(void *); int x(void *e) { return _Unwind_RaiseException(e); }"
    library = Elf(compiled(source, "-lunwind"), "x.so")
    code = library.code[0]
    words = set(np.frombuffer(library.content(code), np.uint32).tolist())
    assert {0x04E0E3E0, 0xD53BD0B0} <= words, "no longer what instructions.guarded knows: CNTD X0; MRS X16, TPIDR2_EL0"
    assert aarch64.beyond(library.content(code), code.address, ()) == []


def test_outline_atomics_run_behind_a_check() -> None:
    data = compiled(PROGRAM, "-moutline-atomics")
    library = Elf(data, "x.so")
    symbols = library.all_symbols
    names = [symbols.name(place) for place in range(len(symbols.table))]
    helper = int(symbols.table["value"][names.index("__aarch64_ldadd4_acq_rel")])
    bounds = library.function_at(helper)
    assert bounds is not None
    code = library.code_bytes(*bounds)
    assert aarch64.beyond(code, helper, ()) == []
    test = next(place for place in range(0, len(code), 4) if code[place + 3] == 0x34)  # CBZ W16
    unguarded = code[:test] + b"\x1f\x20\x03\xd5" + code[test + 4 :]
    assert [feature for _, feature in aarch64.beyond(unguarded, helper, ())] == ["atomics"]


def test_an_extension_without_its_check_is_not_let_through() -> None:
    lines = ["ldr w8, [x0, #544]", "cbnz w8, .+16", "cntd x0", "str w0, [x1, #544]", "ret"]
    assert aarch64.beyond(code_of(lines, cpu="generic+sve"), 0, ()) == []
    for changed in (1, 3):
        bare = [line if place != changed else "nop" for place, line in enumerate(lines)]
        assert aarch64.beyond(code_of(bare, cpu="generic+sve"), 0, ()) == [(8, "sve")]
    loop = ["stg x8, [x8]", "add x8, x8, #16", "cmp x8, x21", "b.lo .-12"]
    assert aarch64.beyond(code_of(loop, cpu="generic+mte"), 0, ()) == []
    assert aarch64.beyond(code_of([*loop[:3], "nop"], cpu="generic+mte"), 0, ()) == [(0, "mte")]


@pytest.mark.parametrize(
    ("word", "target"),
    [
        (0x14000002, 8),
        (0x17FFFFFF, -4),
        (0x97FFFFFE, -8),
        (0x54000040, 8),
        (0x54FFFFE1, -4),
        (0xB4FFFFE0, -4),
        (0x35000060, 12),
        (0x36080040, 8),
        (0xB7FFFFE3, -4),
    ],
)
def test_branches_lead_where_they_say(word: int, target: int) -> None:
    assert aarch64.targets(bytes.fromhex("1f2003d5") + word.to_bytes(4, "little"), ADDRESS - 4) == {ADDRESS + target}


REACHING = """
.macro function name
.globl \\name
.type \\name, %function
\\name:
.endm
.text
function ggml_backend_score
  stp x29, x30, [sp, #-16]!
  bl local
  bl exported
  ldp x29, x30, [sp], #16
  b tail
.size ggml_backend_score, .-ggml_backend_score
.type local, %function
local:
  cbz x0, 1f
  ret
1: b far
.size local, .-local
function exported
  {exported}
  ret
.size exported, .-exported
function unreached
  .inst 0x4e829420
  ret
.size unreached, .-unreached
.type tail, %function
tail:
  ret
.size tail, .-tail
.type far, %function
far:
  {far}
  ret
.size far, .-far
.type start, %function
start:
  {start}
  ret
.size start, .-start
.section .init_array, "aw", %init_array
.quad start
"""
SDOT = ".inst 0x4e829420"  # SDOT V0.4S, V1.16B, V2.16B


def load_time(stripped: bool, **where: str) -> list[str]:
    source = REACHING.format(**{"exported": "nop", "far": "nop", "start": "nop"} | where)
    library = Elf(compiled(source, *(["-s"] if stripped else []), suffix="s"), "x.so")
    score = library.exported("ggml_backend_score")
    assert score is not None
    ranges = reached(library, [*library.run_at_load, score], aarch64)
    return [feature for start, end in ranges for _, feature in aarch64.beyond(library.code_bytes(start, end), start, ())]


@pytest.mark.parametrize("place", ["exported", "far", "start"])
def test_what_the_score_and_the_constructors_reach_is_read(place: str) -> None:
    assert load_time(False, **{place: SDOT}) == ["asimddp"]


def test_what_nothing_reaches_is_not_read() -> None:
    assert load_time(False) == []


def test_a_stripped_module_hides_nothing_that_runs() -> None:
    assert "asimddp" in load_time(True, exported=SDOT)
    assert "asimddp" in load_time(True, start=SDOT)


LEVELS = {
    "": [
        "movaps xmm0, xmm1",
        "addsd xmm0, xmm1",
        "pshufd xmm0, xmm1, 3",
        "rep bsf eax, ecx",
        "cmovne rax, rcx",
        "syscall",
        "lock xadd [rax], ecx",
    ],
    "x86-64-v2": [
        *(
            "popcnt eax, ecx",
            "pshufb xmm0, xmm1",
            "pmulld xmm0, xmm1",
            "roundss xmm0, xmm1, 1",
            "crc32 eax, ecx",
            "haddps xmm0, xmm1",
        ),
        *("pcmpgtq xmm0, xmm1", "lock cmpxchg16b [rax]", "lddqu xmm0, [rax]", "ptest xmm0, xmm1", "pmovzxbw xmm0, xmm1"),
    ],
    "x86-64-v3": [
        *(
            "vaddps ymm0, ymm1, ymm2",
            "vfmadd213ps xmm0, xmm1, xmm2",
            "vcvtph2ps ymm0, xmm1",
            "andn eax, ecx, edx",
            "shlx rax, rcx, rdx",
        ),
        *("movbe eax, [rcx]", "lzcnt eax, ecx", "vmovups ymm8, gs:[r8]", "vzeroupper", "blsr eax, ecx"),
    ],
    "x86-64-v4": [
        "vaddps zmm0, zmm1, zmm2",
        "vpternlogd xmm0, xmm1, xmm2, 3",
        "vmovdqu64 xmm16, [rax]",
        "vpaddd ymm0{{k1}}, ymm1, ymm2".replace("{{", "{").replace("}}", "}"),
    ],
    "aes": ["aesenc xmm0, xmm1", "vaesenc ymm0, ymm1, ymm2"],
    "pclmulqdq": ["pclmulqdq xmm0, xmm1, 1"],
    "sha_ni": ["sha256rnds2 xmm1, xmm2"],
    x86_64.UNKNOWN: ["{vex} vpdpbusd ymm0, ymm1, ymm2"],
    "gfni": ["gf2p8mulb xmm0, xmm1"],
    "rdrand": ["rdrand eax"],
}


@pytest.mark.parametrize("level", LEVELS)
def test_x86_levels_are_told_by_mnemonic_and_encoding(level: str) -> None:
    pytest.importorskip("capstone")
    for line in LEVELS[level]:
        found = [feature for _, feature in x86_64.beyond(code_of([line], "x86_64", "x86_64_v4"), ADDRESS, ())]
        assert found == ([level] if level else []), line


@pytest.mark.parametrize(
    ("cpu", "needed"),
    [
        ("x86_64", set()),
        ("x86_64_v2", {"x86-64-v2"}),
        ("x86_64_v3", {"x86-64-v2", "x86-64-v3"}),
        ("x86_64_v4", {"x86-64-v2", "x86-64-v3", "x86-64-v4"}),
    ],
)
def test_compiled_x86_code_needs_its_level(cpu: str, needed: set[str]) -> None:
    pytest.importorskip("capstone")
    source = PROGRAM + "int bits(unsigned long x) { return __builtin_popcountl(x); }"
    flags = ("-c", "-O3", "-ffast-math", "-mprefer-vector-width=512")
    code = text_of(compiled(source, *flags, machine="x86_64", cpu=cpu))
    assert {feature for _, feature in x86_64.beyond(code, ADDRESS, ())} == needed
    assert x86_64.beyond(code, ADDRESS, processors.X86_64[cpu]) == []


@pytest.mark.parametrize(
    ("code", "slot"), [("f30f1eff2500100000", None), ("ff2500100000", 0x2006), ("f30f1efaff25faffffff", 0x1004)]
)
def test_x86_stubs_lead_through_their_pointer(code: str, slot: int | None) -> None:
    assert x86_64.slot(bytes.fromhex(code), ADDRESS) == slot


@pytest.mark.parametrize("cpu", ["cortex_a7", "cortex_a8", "cortex_a53"])
def test_arm_attributes_are_as_pyelftools_reads_them(cpu: str) -> None:
    data = compiled("int x;", "-c", machine="arm", cpu=cpu)
    section = elftools.ELFFile(io.BytesIO(data)).get_section_by_name(".ARM.attributes")
    reference = {}
    for part in section.iter_subsections():
        for each in part.iter_subsubsections():
            reference |= {attribute.tag: attribute.value for attribute in each.iter_attributes()}
    ours = arm.attributes(section.data())
    assert ours[6] == reference["TAG_CPU_ARCH"]
    assert ours[10] == reference["TAG_FP_ARCH"]
    assert ours[12] == reference["TAG_WMMX_ARCH" if "TAG_ADVANCED_SIMD_ARCH" not in reference else "TAG_ADVANCED_SIMD_ARCH"]
    assert ours[arm.HARD_FLOAT_TAG] == reference["TAG_ABI_VFP_ARGS"] == 1
    assert arm.needs(ours) <= processors.ARM[cpu]
    assert ("armv8" in arm.needs(ours)) == (cpu == "cortex_a53")


@pytest.mark.parametrize(
    "section",
    [b"", b"A", b"A\xff\xff\xff\xff", b"A\x00\x00\x00\x00aeabi\0", b"A\x20\0\0\0aeabi\0\1\xff\xff\xff\xff" + b"\xff" * 20],
)
def test_damaged_attributes_end_quietly(section: bytes) -> None:
    assert isinstance(arm.attributes(section), dict)


ARM_LINES = {
    "idiva": ("cortex_a7", ["sdiv r0, r1, r2", "udivne r0, r1, r2"]),
    "vfpv4": ("cortex_a7", ["vfma.f32 s0, s1, s2", "vfnms.f64 d0, d1, d2", "vfma.f32 q0, q1, q2", "vfmsle.f32 s0, s1, s2"]),
    "crc32": ("cortex_a53", ["crc32b r0, r1, r2", "crc32cw r0, r1, r2"]),
    "armv8": (
        "cortex_a53",
        [
            *(
                "lda r0, [r1]",
                "stl r0, [r1]",
                "ldaexd r0, r1, [r2]",
                "stlex r0, r1, [r2]",
                "vseleq.f32 s0, s1, s2",
                "vmaxnm.f64 d0, d1, d2",
            ),
            *(
                "vrinta.f32 s0, s1",
                "vrintx.f64 d0, d1",
                "vcvtm.s32.f32 s0, s1",
                "vmaxnm.f32 q0, q1, q2",
                "vrintm.f32 q0, q1",
                "vcvta.s32.f32 q0, q1",
            ),
        ],
    ),
    "aes": ("cortex_a53+aes", ["aese.8 q0, q1", "aesimc.8 q0, q1"]),
    "": (
        "cortex_a7",
        [
            *(
                "mul r0, r1, r2",
                "smlal r0, r1, r2, r3",
                "ldrex r0, [r1]",
                "strexd r0, r2, r3, [r1]",
                "qadd r0, r1, r2",
                "bkpt #0",
            ),
            *(
                "vmla.f32 q0, q1, q2",
                "vadd.f64 d0, d1, d2",
                "vcvt.s32.f32 q0, q1",
                "vmax.f32 q0, q1, q2",
                "vzip.8 q0, q1",
                "vmovn.i32 d0, q1",
            ),
            *(
                "vcvt.f16.f32 d0, q1",
                "vcvtb.f32.f16 s0, s1",
                "vqdmulh.s16 q0, q1, q2",
                "vrecpe.f32 q0, q1",
                "vldr s0, [r0]",
                "vmov r0, s0",
            ),
            *(
                "vst4.8 {d0-d3}, [r0]",
                "vtbl.8 d0, {d1}, d2",
                "vmov.f32 q0, #1.0",
                "dmb ish",
                "pld [r0]",
                "blx r0",
                "umaal r0, r1, r2, r3",
            ),
        ],
    ),
}


@pytest.mark.parametrize("feature", ARM_LINES)
def test_arm_extensions_are_told_by_their_bits(feature: str) -> None:
    cpu, lines = ARM_LINES[feature]
    found = arm.beyond(code_of(lines, "arm", cpu), ADDRESS, ())
    assert found == [(ADDRESS + 4 * place, feature) for place in range(len(lines) if feature else 0)]


def test_arm_constants_are_not_taken_for_instructions() -> None:
    constant = "e710f010"  # SDIV R0, R0, R0
    for load in ("ldr r0, 1f", "vldr s0, 1f", "adr r0, 1f"):
        lines = [load, "bx lr", f"1: .inst 0x{constant}"]
        assert arm.beyond(code_of(lines, "arm", "cortex_a7"), ADDRESS, ()) == []
    assert arm.beyond(code_of(["nop", "bx lr", f".inst 0x{constant}"], "arm", "cortex_a7"), ADDRESS, ()) == [
        (ADDRESS + 8, "idiva")
    ]


@pytest.mark.parametrize("reader", [aarch64, arm, x86_64])
def test_code_of_nothing_but_new_instructions_does_not_fill_the_memory(reader: ModuleType) -> None:
    one = {aarch64: "0094804e", arm: "400c00f2", x86_64: "62f17c4858c1"}[reader]  # SDOT, VFMA, VADDPS of 512 bits
    assert len(reader.beyond(bytes.fromhex(one) * 200_000, 0, ())) == encodings.MOST


def test_long_code_is_read_in_pieces_without_a_seam() -> None:
    """Instructions of 7 bytes, so that pieces end in the midst of one; the last of all needs AVX."""
    code = bytes.fromhex("488d8000010000") * 400_000 + bytes.fromhex("c5f858c1")
    assert x86_64.beyond(code, 0, ()) == [(2_800_000, "x86-64-v3")]


def test_prefixes_without_an_instruction_are_passed_over_quickly() -> None:
    assert x86_64.beyond(b"\x66" * 300_000, 0, ()) == []
