"""Short names for what a plot shows: what tells its things apart, and no more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

_LONGEST_FILE = 20


def distinct_labels(traits: Sequence[Mapping[str, str]]) -> list[str]:
    """A short name for each of several things, made of the traits by which they differ and no more.

    Traits are taken in their order as long as one makes a further difference; of file names (the trait `model`), what all share
    at the beginning and the end is left out. Things that do not differ are named by their first trait.
    """
    chosen: list[str] = []
    groups = 1
    for name in traits[0] if traits else ():
        count_with = len({tuple(each[key] for key in (*chosen, name)) for each in traits})
        if count_with > groups:
            chosen.append(name)
            groups = count_with
    columns = [
        _files(each[name] for each in traits) if name == "model" else [each[name] for each in traits]
        for name in chosen or list(traits[0] if traits else ())[:1]
    ]
    return [" ".join(filter(None, parts)) for parts in zip(*columns, strict=True)]


def _files(names: Iterable[str]) -> list[str]:
    """`tiny-Q4_0.gguf`, `tiny-Q8_0.gguf` as `Q4_0`, `Q8_0`: cut at separators only, and in the middle when still long."""
    found = list(names)
    distinct = sorted(set(found))
    if len(distinct) > 1:
        first, last = distinct[0], distinct[-1]
        shared = next(i for i in range(len(first) + 1) if i == len(first) or first[i] != last[i])
        start = max(first.rfind(c, 0, shared) + 1 for c in "-/ ")
        ending = ".gguf" if all(each.endswith(".gguf") for each in distinct) else ""
        cut = [each[start : len(each) - len(ending)] for each in found]
        found = cut if all(cut) else found
    return [each if len(each) <= _LONGEST_FILE else f"{each[:7]}…{each[-12:]}" for each in found]
