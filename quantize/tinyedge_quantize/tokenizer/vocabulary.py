"""A GGUF vocabulary under construction: one text, score and type per embedding row, and the checks that all kinds share."""

from __future__ import annotations

import re
from enum import IntEnum

from tinyedge.errors import TokenizerError
from tinyedge_quantize.metadata import MetadataEntry, floats, int32s, strings
from tinyedge_quantize.strangers import show

PAD_SCORE = -10000.0
ADDED_SCORE = -1000.0
_BYTE_PIECE = re.compile(rb"<0x[0-9A-Fa-f]{2}>")


class TokenType(IntEnum):
    """GGUF's `tokenizer.ggml.token_type` (llama.h, llama_token_type)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Vocabulary:
    """`size` rows, all unused fillers `[PADn]` at first, as the converter makes them (conversion/base.py)."""

    def __init__(self, size: int) -> None:
        self.tokens: list[bytes] = [b"[PAD%d]" % row for row in range(size)]
        self.scores: list[float] = [PAD_SCORE] * size
        self.types: list[int] = [int(TokenType.UNUSED)] * size

    def __len__(self) -> int:
        return len(self.tokens)

    def put(self, row: int, text: str | bytes, score: float, kind: int) -> None:
        """Fills one row, which the caller has checked to exist; TokenizerError for text with a lone surrogate."""
        if isinstance(text, str):
            try:
                text = text.encode("utf-8")
            except UnicodeEncodeError:
                raise TokenizerError(f"token {row} is {show(text)}, which has no UTF-8 form") from None
        self.tokens[row] = text
        self.scores[row] = score
        self.types[row] = int(kind)

    def llama_entries(self) -> dict[str, MetadataEntry]:
        """The arrays of a `llama` vocabulary. TokenizerError for rows that would make llama.cpp abort the process."""
        self._check_bytes()
        return self.unigram_entries()

    def unigram_entries(self) -> dict[str, MetadataEntry]:
        """The arrays of a `t5` vocabulary. TokenizerError for rows that would make llama.cpp abort the process."""
        self._check_distinct()
        self._check_byte_texts()
        return {
            "tokenizer.ggml.tokens": strings(self.tokens),
            "tokenizer.ggml.scores": floats(self.scores),
            "tokenizer.ggml.token_type": int32s(self.types),
        }

    def gpt2_entries(self) -> dict[str, MetadataEntry]:
        """The arrays of a `gpt2` vocabulary. TokenizerError for rows that would make llama.cpp abort the process."""
        self._check_distinct()
        return {"tokenizer.ggml.tokens": strings(self.tokens), "tokenizer.ggml.token_type": int32s(self.types)}

    def _check_distinct(self) -> None:
        # llama.cpp reads a text up to its first NUL, renames an empty one to [EMPTY_row], and then aborts the process when
        # two rows are equal (src/llama-vocab.cpp, GGML_ASSERT(id_to_token.size() == token_to_id.size())).
        rows: dict[bytes, int] = {}
        for row, token in enumerate(self.tokens):
            known = token.partition(b"\0")[0] or b"[EMPTY_%d]" % row
            first = rows.setdefault(known, row)
            if first != row:
                raise TokenizerError(
                    f"tokens {first} and {row} are both {show(known.decode())}, which llama.cpp cannot tell apart",
                    "rename one of them in the tokenizer's files",
                )

    def _check_bytes(self) -> None:
        # llama.cpp spells a character that no piece covers byte by byte, and an exception ends the process when a byte has
        # no piece (src/llama-vocab.cpp, byte_to_token); an ASCII character may stand for its byte.
        known = set(self.tokens)
        missing = [
            byte for byte in range(256) if b"<0x%02X>" % byte not in known and not (byte < 128 and bytes([byte]) in known)
        ]
        if missing:
            raise TokenizerError(
                f"the vocabulary lacks {len(missing)} of the 256 byte pieces, the first <0x{missing[0]:02X}>, "
                "and llama.cpp cannot spell unknown characters without them",
                "train or take a tokenizer with byte fallback",
            )

    def _check_byte_texts(self) -> None:
        for row, kind in enumerate(self.types):
            if kind == TokenType.BYTE and not _BYTE_PIECE.fullmatch(self.tokens[row]):
                raise TokenizerError(f"token {row} is a byte piece but reads {show(self.tokens[row].decode())}")


def refuse_more_than(vocab_size: int, pieces: int, name: str) -> None:
    """Raises TokenizerError when a tokenizer has more pieces than the embedding has rows."""
    if pieces > vocab_size:
        raise TokenizerError(
            f"{name} has {pieces} tokens but the embedding has {vocab_size} rows",
            "use the tokenizer that this checkpoint was trained with",
        )


def looks_special(token: str) -> bool:
    """True for added tokens that are control tokens though their files do not say so.

    The list is conversion/base.py's `does_token_look_special`: command-r, deepseek-coder and gemma need it.
    """
    return (
        token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (token.startswith("<|") and token.endswith("|>"))
        or (token.startswith("<｜") and token.endswith("｜>"))
        or (token.startswith("<unused") and token.endswith(">"))
    )
