"""Which tokens of a vocabulary are special, and how to tokenize a text so that none of them come out of it.

llama.cpp finds special tokens in a text by their spelling (llama_vocab::impl::tokenizer_st_partition in llama-vocab.cpp).
What is taken apart here is taken apart as it does there, so that both ways of one text give the same tokens.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Protocol

from tinyedge.errors import TemplateError

_BEFORE = "\ufdd0"  # a noncharacter, in no vocabulary: it takes the space that SentencePiece puts before a text
_C_SPACES = " \t\n\v\f\r"  # what isspace() of C strips


class Vocabulary(Protocol):
    """What is needed of `tinyedge.native.model.Model`."""

    @property
    def bos(self) -> int | None: ...
    @property
    def vocabulary_size(self) -> int: ...
    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]: ...
    def piece(self, token: int) -> bytes: ...
    def token_text(self, token: int) -> str: ...
    def is_control(self, token: int) -> bool: ...


class SpecialTokens:
    """A vocabulary of which the control tokens and those of `marks` are special."""

    def __init__(self, model: Vocabulary, marks: frozenset[int]) -> None:
        self.model, self._marks = model, marks
        self._puts_space_first = b"".join(map(model.piece, self.tokenize("a", parse_special=False))) == b" a"

    def tokenize(self, text: str, *, after_text: bool = False, parse_special: bool = True) -> list[int]:
        """The tokens of a text that begins, or that goes on where another ended when `after_text`; BOS is not added."""
        if not after_text or not self._puts_space_first:
            return self.model.tokenize(text, add_special=False, parse_special=parse_special)
        before = self.model.tokenize(_BEFORE, add_special=False, parse_special=parse_special)
        both = self.model.tokenize(_BEFORE + text, add_special=False, parse_special=parse_special)
        if both[: len(before)] != before:
            raise TemplateError("the vocabulary has tokens with U+FDD0, which is no character")
        return both[len(before) :]

    def of(self, tokens: Iterable[int]) -> list[int]:
        """Those of `tokens` that are special, in their order."""
        tokens = list(tokens)
        special = {token for token in set(tokens) if token in self._marks or self.model.is_control(token)}
        return [token for token in tokens if token in special]

    def spellings(self, tokens: Iterable[int]) -> dict[str, int]:
        """Ids by text of those of `tokens` that are special, longest first: the order in which llama.cpp looks for them."""
        texts = {self.model.token_text(token): token for token in self.of(tokens)}
        return dict(sorted(texts.items(), key=lambda item: -len(item[0].encode("utf-8"))))

    def is_text_too(self, token: int) -> bool:
        """Whether a special token is one that a model may write into an answer (`<think>`)."""
        return self.model.piece(token) != b""

    def split(self, text: str, special: Mapping[str, int]) -> list[str | int]:
        """`text` taken apart at the spellings `special`, with the tokens in their place."""
        parts: list[str | int] = [text]
        for spelling, token in special.items():
            strips = self._strips_after(spelling, token)
            found: list[str | int] = []
            for part in parts:
                if isinstance(part, int):
                    found.append(part)
                    continue
                first, *others = part.split(spelling)
                found.append(first)
                for other in others:
                    found += (token, other.lstrip(_C_SPACES) if strips else other)
            parts = [part for part in found if part != ""]
        return parts

    def _strips_after(self, spelling: str, token: int) -> bool:
        """Whether llama.cpp drops the white space after this special token, as it does for Phi-3."""
        return self.tokenize(spelling + "\n\nx") == [token, *self.tokenize("x", parse_special=False)]

    def as_text(self, text: str, *, after_text: bool) -> list[int]:
        """The tokens of `text` with none of the special ones among them. Raises TemplateError when that cannot be had.

        llama.cpp finds a user-defined token in any text, so a text that spells one is cut inside it.
        """
        found = self.tokenize(text, after_text=after_text, parse_special=False)
        unwanted = self.spellings(found)
        if not unwanted:
            return found
        pattern = "|".join(map(re.escape, unwanted))
        cuts = [0, *(match.start() + 1 for match in re.finditer(f"(?={pattern})", text)), len(text)]
        found = []
        for start, end in itertools.pairwise(cuts):
            found += self.tokenize(text[start:end], after_text=after_text or start > 0, parse_special=False)
        if self.of(found):
            raise TemplateError(f"the vocabulary cannot spell {next(iter(unwanted))!r} as plain text")
        return found
