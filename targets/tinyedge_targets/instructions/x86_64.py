"""x86-64 instructions beyond a micro-architecture level, by disassembling with capstone (extra `[targets]`).

Levels: System V ABI, AMD64 Architecture Processor Supplement, "Micro-Architecture Levels". TZCNT counts as base: compilers
emit it as a faster BSF, which is how older processors read its bytes. Code is decoded from each section's start on; bytes that
are no instruction are skipped.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from tinyedge.errors import BuildError
from tinyedge_targets.instructions.encodings import MOST

_V2 = """popcnt crc32 cmpxchg16b lahf sahf
    addsubpd addsubps fisttp haddpd haddps hsubpd hsubps lddqu movddup movshdup movsldup
    pabsb pabsd pabsw palignr phaddd phaddsw phaddw phsubd phsubsw phsubw pmaddubsw pmulhrsw pshufb psignb psignd psignw
    blendpd blendps blendvpd blendvps dppd dpps extractps insertps movntdqa mpsadbw packusdw pblendvb pblendw pcmpeqq pextrb
    pextrd pextrq phminposuw pinsrb pinsrd pinsrq pmaxsb pmaxsd pmaxud pmaxuw pminsb pminsd pminud pminuw pmovsxbd pmovsxbq
    pmovsxbw pmovsxdq pmovsxwd pmovsxwq pmovzxbd pmovzxbq pmovzxbw pmovzxdq pmovzxwd pmovzxwq pmuldq pmulld ptest roundpd
    roundps roundsd roundss pcmpestri pcmpestrm pcmpgtq pcmpistri pcmpistrm"""
_V2_MNEMONICS = frozenset(_V2.split())
_V3 = frozenset({"movbe", "lzcnt"})

# What no level has: pattern of the mnemonic -> the word of /proc/cpuinfo. Compared before the encodings decide.
_OTHER = (
    (re.compile(r"v?aes(enc|dec|imc|keygen).*"), "aes"),
    (re.compile(r"v?pclmul.*"), "pclmulqdq"),
    (re.compile(r"sha(1|256).*"), "sha_ni"),
    (re.compile(r"v?gf2p8.*"), "gfni"),
    (re.compile(r"vp4?dp(b|w).*"), "avx_vnni"),
    (re.compile(r"vpmadd52.*"), "avx512ifma"),
    (re.compile(r"vdpbf16ps|vcvtne.*bf16"), "avx512_bf16"),
    (re.compile(r"vperm(b|i2b|t2b)|vpmultishiftqb"), "avx512vbmi"),
    (re.compile(r"vp(compress|expand)[bw]|vpsh[lr]d.*"), "avx512_vbmi2"),
    (re.compile(r"vpopcnt[bw]|vpshufbitqmb"), "avx512_bitalg"),
    (re.compile(r"vpopcnt[dq]"), "avx512_vpopcntdq"),
    (re.compile(r"(ld|st)tilecfg|tile.*|tdp.*"), "amx_tile"),
    (re.compile(r"adcx|adox"), "adx"),
    (re.compile(r"rdrand"), "rdrand"),
    (re.compile(r"rdseed"), "rdseed"),
)
UNKNOWN = "a newer vector extension"
_PREFIXES = bytes.fromhex("2e363e26646567f2f366f0")
_BRANCH = re.compile(r"(?:bnd )?(?:call|jmp|j[a-z]{1,4}|loop|loopn?e)")
_ADDRESS = re.compile(r"0x([0-9a-f]+)")
_THROUGH_MEMORY = (b"\xff\x25", b"\xf2\xff\x25")  # jmp [rip + offset], with and without the bnd prefix
_LONGEST = 15  # bytes of an instruction
_PIECE = 1 << 10  # capstone keeps 240 bytes for each instruction it is given, and reads a row of prefixes to its end
_ENDBR64 = b"\xf3\x0f\x1e\xfa"


def beyond(code: bytes, address: int, allowed: Collection[str]) -> list[tuple[int, str]]:
    """Address and feature of each instruction in `code`, which lies at `address`, that needs a feature not in `allowed`; the
    first MOST of them.

    Raises:
        BuildError: capstone is not installed.
    """
    features: dict[str, str] = {}
    found: list[tuple[int, str]] = []
    for at, mnemonic, _ in _instructions(code, address):
        if mnemonic not in features:
            features[mnemonic] = _feature(mnemonic.rpartition(" ")[2])  # without lock, rep and bnd
        feature = features[mnemonic] or _level(code, at - address)
        if feature and mnemonic == ".byte":
            feature = UNKNOWN
        if feature and feature not in allowed:
            found.append((at, feature))
            if len(found) == MOST:
                break
    return found


def _feature(mnemonic: str) -> str:
    if mnemonic in _V2_MNEMONICS:
        return "x86-64-v2"
    if mnemonic in _V3:
        return "x86-64-v3"
    return next((feature for pattern, feature in _OTHER if pattern.fullmatch(mnemonic)), "")


def _level(code: bytes, place: int) -> str:
    """The level by encoding: VEX (C4, C5) came with AVX and BMI, EVEX (62) with AVX-512; in 64-bit code nothing else begins so.

    That holds for the first of the single bytes that an instruction too new for capstone is given as.
    """
    end = min(place + _LONGEST, len(code)) - 1
    while place < end and code[place] in _PREFIXES:
        place += 1
    return {0xC4: "x86-64-v3", 0xC5: "x86-64-v3", 0x62: "x86-64-v4"}.get(code[place], "")


def targets(code: bytes, address: int) -> set[int]:
    """Where the direct branches and calls in `code` lead."""
    found: set[int] = set()
    for _, mnemonic, operands in _instructions(code, address):
        if _BRANCH.fullmatch(mnemonic) and (place := _ADDRESS.fullmatch(operands)):
            found.add(int(place.group(1), 16))
    return found


def slot(code: bytes, address: int) -> int | None:
    """The pointer that a procedure linkage stub at the start of `code` jumps through."""
    at = len(_ENDBR64) if code.startswith(_ENDBR64) else 0
    for form in _THROUGH_MEMORY:
        end = at + len(form) + 4
        if code.startswith(form, at) and len(code) >= end:
            return address + end + int.from_bytes(code[end - 4 : end], "little", signed=True)
    return None


def _instructions(code: bytes, address: int) -> Iterator[tuple[int, str, str]]:
    """Address, mnemonic and operands of the instructions; `.byte` for what is none."""
    try:
        import capstone
    except ImportError as error:
        raise BuildError("reading x86-64 code needs capstone", "pip install 'tinyedge-llm[targets]'") from error
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    disassembler.skipdata = True
    begin = 0
    while begin < len(code):
        piece = code[begin : begin + _PIECE]
        # The last instructions of a piece may be cut off: they begin the next one.
        end = len(piece) if begin + _PIECE >= len(code) else len(piece) - _LONGEST
        base, after = address + begin, 0
        for at, size, mnemonic, operands in disassembler.disasm_lite(piece, base):
            if at - base >= end:
                break
            yield at, mnemonic, operands
            after = at - base + size
        begin += after or len(piece)
