"""The lists that `tinyedge bench` takes: 128,512 and 1,2,4, f16,q8_0 and cpu,cuda, pairs like 512,128."""

from __future__ import annotations

import re
from collections.abc import Sequence

import typer

from tinyedge.cli.output import MAX_TOKENS, printable

MOST_CASES = 10_000
_NUMBER = re.compile(r"[0-9]{1,12}")


def numbers(text: str, option: str, least: int, most: int) -> tuple[int, ...]:
    """The numbers in `128,512`, each once, in order. A number out of bounds or something else is wrong usage."""
    parts = [part.strip() for part in text.split(",")]
    if not all(_NUMBER.fullmatch(part) and least <= int(part) <= most for part in parts):
        bounds = f"from {least} to {most}" if most < MAX_TOKENS else f"from {least} on"
        raise typer.BadParameter(
            f"it takes whole numbers {bounds}, several with commas between, not {printable(text, 40)!r}", param_hint=option
        )
    return tuple(dict.fromkeys(int(part) for part in parts))


def pairs(texts: Sequence[str], option: str) -> tuple[tuple[int, int], ...]:
    """The pairs in several `512,128`: prompt tokens, generated tokens."""
    found = []
    for text in texts:
        parts = [part.strip() for part in text.split(",")]
        if len(parts) != 2 or not all(_NUMBER.fullmatch(part) and 1 <= int(part) <= MAX_TOKENS for part in parts):
            raise typer.BadParameter(
                f"it takes prompt and generated tokens like 512,128, not {printable(text, 40)!r}", param_hint=option
            )
        found.append((int(parts[0]), int(parts[1])))
    return tuple(dict.fromkeys(found))


def words(text: str, option: str, known: Sequence[str] = ()) -> tuple[str, ...]:
    """The words in `cpu,cuda`, in small letters, each once; one that is not among those `known`, if any, is wrong usage."""
    parts = [part.strip().lower() for part in text.split(",")]
    if not all(parts) or (known and not set(parts) <= set(known)):
        wanted = f"one or several of {', '.join(known)}" if known else "words with commas between"
        raise typer.BadParameter(f"it takes {wanted}, not {printable(text, 40)!r}", param_hint=option)
    return tuple(dict.fromkeys(parts))


def check_count(lists: Sequence[Sequence[object]], tests: int) -> None:
    """Refuses lists that make together more cases than anyone can wait for, before they are made."""
    count = tests
    for each in lists:
        count *= len(each)
    if count > MOST_CASES:
        raise typer.BadParameter(f"these lists make {count} cases together, and at most {MOST_CASES} are measured")
