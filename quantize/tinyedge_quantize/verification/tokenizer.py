"""Whether a GGUF file tokenizes as the tokenizer it was made from, and gives every text back.

The texts are in Unicode's normal form C, most of them in KC too: llama.cpp does not normalize, so that it splits another form
otherwise than a tokenizer that does, in whatever file.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyedge.errors import VerificationError
from tinyedge.gguf_file import GGUFFile
from tinyedge.gguf_values import GGUFArray
from tinyedge_quantize.verification.tokenizer_worker import LLAMA_CPP, SENTENCEPIECE, TOKENIZERS, Result

TEXTS = (
    "Hello, world!",
    " leading space, trailing space ",
    "two  three   four    many          spaces",
    "tabs\tand\t\tmore\nlines\n\n\nand\r\nreturns\n \n  \n",
    "don't I'll you've we're HE'S SHE'D it's",
    "7 42 365 1024 65536 1234567890 3.14159 1,000,000 2024-02-29 +1 (555) 010-9999 0xDEADBEEF 1e-5",
    "def f(x):\n    if x > 0:\n        return {'a': [x ** 2, None]}\n\treturn x != 0 and not y\n",
    '#include <stdio.h>\nint main(void) { printf("%d\\n", 1 << 4); return 0; } // end',
    'SELECT * FROM t WHERE a >= 1; <div class="x">&nbsp;</div> $HOME/.config ~/a_b-c.txt C:\\Temp',
    "naïve café Ångström fiancée São Paulo Straße Łódź Dvořák İstanbul",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "敏捷的棕色狐狸跳过了懒狗。三百六十五",
    "日本語のひらがなとカタカナと漢字、「括弧」。",
    "한국어 문장과 띄어쓰기입니다.",
    "السلام عليكم، كيف حالك؟ ١٢٣٤",
    "שלום עולם, מה שלומך?",
    "नमस्ते दुनिया ๑๒๓ สวัสดีชาวโลก வணக்கம்",
    "🙂 🚀🔥 👍🏽 ❤️ 🇺🇦",
    "👩‍👩‍👧‍👦 family, 👩🏽‍💻 coder, 🏳️‍🌈",
    "zero\u200bwidth\u200djoiner\u200cnon\ufeffmark",
    "control \x01\x02\x1b[31m\x7f characters",
    "math ∑∫√∞≠≤ ∀x∈ℕ box ┌─┐ arrows ←→⇒ ¿¡§¶†‡",
    "“curly” ‘quotes’ — dash – dash • bullet € £ ¥",
    "𝔘nusual 𐍈 𓀀 planes 🂡",
    "ALLCAPS lowercase CamelCase snake_case kebab-case SCREAMING_SNAKE x86_64",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "!!!???...---===***///((()))[[[]]]{{{}}}",
    "https://example.org/a/b?c=d&e=%20f#g user@example.org",
    "under▁line Ġ Ċ like the marks inside vocabularies <0x0A> <0xFF>",
    "[INST] look-alike [/INST] <<SYS>> <|not_a_token|> <|im_start <s <unk",
    "<s> </s> <unk> <pad> <mask>",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|><|eot_id|>",
    "<bos> <eos>",
    "<start_of_turn>user\nhi<end_of_turn>\n",
    "<think>\nso\n</think>",
    "<|user|>\nhi<|end|>\n<|assistant|>",
)

_WORKER = Path(__file__).with_name("tokenizer_worker.py")
# The largest published tokenizer.json (Gemma 3) has 33 MB.
_MAX_BYTES = 128 << 20
_SECONDS = 120
_SHOWN_IDS = 8
_SPACE = "▁"


@dataclass(frozen=True)
class TokenizerReport:
    """What was found: sentences for what is as it should be, or for what is not. `compared` is None without a source.

    `decoding` and `compared` begin with whether they passed; None stands for a comparison that could not be made.
    """

    decoding: tuple[bool, str]
    compared: tuple[bool | None, str] | None = None


def check_tokenizer(gguf: GGUFFile, folder: Path | None) -> TokenizerReport:
    """Tokenizes TEXTS with llama.cpp and with the tokenizer in `folder`.

    The file must have passed `check_runnable`. Never raises for what is in the files.
    """
    try:
        found = _tokenize(LLAMA_CPP, gguf.path, TEXTS)
    except VerificationError as error:
        return TokenizerReport((False, error.problem))
    assert found is not None, "without llama.cpp nothing else here would have worked"
    return TokenizerReport(_decoding(gguf, found), _comparison(gguf, folder, found) if folder is not None else None)


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer lies in the folder."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def _decoding(gguf: GGUFFile, found: Sequence[Result]) -> tuple[bool, str]:
    """Whether every text whose bytes the vocabulary can spell comes back, after a space at most.

    The mark that SentencePiece writes for a space stands for one.
    """
    spellable = _spellable_bytes(gguf)
    texts = [(text, result) for text, result in zip(TEXTS, found, strict=True) if spellable.issuperset(text.encode())]
    for text, result in texts:
        decoded = bytes.fromhex(result["decoded"]).decode("utf-8", "backslashreplace")
        if decoded.replace(_SPACE, " ") not in (given := text.replace(_SPACE, " "), " " + given):
            return False, f"the text {_short(text)} is decoded as {_short(decoded)}"
    return True, f"{len(texts)} texts are decoded as they were"


def _spellable_bytes(gguf: GGUFFile) -> frozenset[int]:
    """The bytes that have a token: all, except that some byte-level vocabularies (SmolLM's) leave out rare ones."""
    tokens = gguf.metadata["tokenizer.ggml.tokens"]
    if gguf.metadata["tokenizer.ggml.model"] != "gpt2" or not isinstance(tokens, GGUFArray):
        return frozenset(range(256))
    known = set(tokens.raw_strings)
    return frozenset(byte for byte, character in enumerate(_byte_characters()) if character.encode() in known)


def _byte_characters() -> str:
    """The character that stands for each byte in a byte-level vocabulary: GPT-2's encoder.py, bytes_to_unicode."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


def _comparison(gguf: GGUFFile, folder: Path, found: Sequence[Result]) -> tuple[bool | None, str]:
    """Whether the ids are those of the library that the source was made for; None when it is not installed."""
    candidates = [(SENTENCEPIECE, folder / "tokenizer.model"), (TOKENIZERS, folder / "tokenizer.json")]
    if gguf.metadata["tokenizer.ggml.model"] == "gpt2":
        candidates = candidates[1:]
    there = [(library, path) for library, path in candidates if path.is_file()]
    if not there:
        return None, f"not compared: {folder} has no {' or '.join(path.name for _, path in candidates)}"
    try:
        for library, path in there:
            if (wanted := _tokenize(library, path, TEXTS)) is not None:
                return _compare(gguf, library, path, found, wanted)
    except VerificationError as error:
        return False, error.problem
    return None, "not compared with the source's own tokenizer: pip install 'tinyedge-llm[verify]'"


def _compare(
    gguf: GGUFFile, library: str, path: Path, found: Sequence[Result], wanted: Sequence[Result]
) -> tuple[bool | None, str]:
    """Whether all ids are the same.

    `tokenizers` takes every special token that is spelled in a text for one. sentencepiece does so with its user-defined pieces
    alone, which may be control tokens by now, and knows nothing of tokens that were added later.
    """
    modes = ("plain", "special") if library == SENTENCEPIECE else ("special",)
    added = _added_texts(gguf, wanted[0]["pieces"]) if library == SENTENCEPIECE else ()
    compared = 0
    for text, ours, theirs in zip(TEXTS, found, wanted, strict=True):
        if any(each in text for each in added):
            continue
        ids = theirs[modes[0]]
        if all(ours[mode] != ids for mode in modes):
            return False, _difference(text, ours[modes[0]], ids, f"{library} with {path.name}")
        compared += 1
    return True, f"{compared} texts have the ids that {library} gives them with {path.name}"


def _added_texts(gguf: GGUFFile, pieces: int) -> tuple[str, ...]:
    """The tokens behind the `pieces` of tokenizer.model."""
    tokens = gguf.metadata["tokenizer.ggml.tokens"]
    return tuple(filter(None, tokens[pieces:])) if isinstance(tokens, GGUFArray) else ()


def _difference(text: str, ours: Sequence[int], theirs: Sequence[int], library: str) -> str:
    place = next(
        (place for place, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]),
        min(len(ours), len(theirs)),
    )
    begin = max(0, place - 2)
    mine, others = (f"{list(ids[begin : begin + _SHOWN_IDS])}" for ids in (ours, theirs))
    return f"the text {_short(text)} has from token {begin} on the ids {mine} where {library} has {others}"


def _short(text: str) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 60 else f"{shown[:56]}...{shown[0]}"


def _tokenize(library: str, path: Path, texts: Sequence[str]) -> list[Result] | None:
    """What a child process gives for the texts; None when the library is not installed.

    Raises VerificationError when the child ends in any other way: the tokenizer cannot be used.
    """
    if library != LLAMA_CPP and path.stat().st_size > _MAX_BYTES:
        raise VerificationError(f"{path} has more than {_MAX_BYTES >> 20} MiB, more than any tokenizer")
    folders = json.dumps([entry for entry in sys.path if entry])
    command = [sys.executable, "-I", "-S", str(_WORKER), folders, library, str(path)]
    try:
        done = subprocess.run(command, input=json.dumps(list(texts)).encode(), capture_output=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        raise VerificationError(f"{library} did not tokenize with {path} in {_SECONDS} seconds") from None
    if done.returncode:
        raise VerificationError(f"{library} cannot tokenize with {path} ({_cause(done)})")
    # The last line: what a library printed stands before it.
    results: list[Result] | None = json.loads(done.stdout.splitlines()[-1])
    return results


def _cause(done: subprocess.CompletedProcess[bytes]) -> str:
    """The last line that the child wrote, or how it ended."""
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:200] if lines and done.returncode > 0 else f"a child process ended with {done.returncode}"
