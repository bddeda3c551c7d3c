"""The part of a library that runs when it is opened, asked one question and closed again.

llama.cpp opens every variant module, calls its `ggml_backend_score` and closes those it does not take. What runs then must run
on any processor, the rest of a module only on those that its score accepts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from tinyedge.errors import WheelError
from tinyedge_targets.elf import Elf


class Branches(Protocol):
    """What following code takes: instructions.aarch64 and instructions.x86_64 provide it."""

    def targets(self, code: bytes, address: int) -> set[int]: ...

    def slot(self, code: bytes, address: int) -> int | None: ...


def reached(elf: Elf, entries: Iterable[int], branches: Branches) -> list[tuple[int, int]]:
    """Address ranges of the functions that direct branches and calls reach from `entries`, sorted.

    Calls through the procedure linkage table are followed when they come back into this library. Calls through other pointers
    (C++ virtual functions, callbacks, atexit handlers) and into other libraries are not.

    Raises:
        WheelError: its functions overlap far more than any compiler's do.
    """
    todo, seen = list(entries), dict[int, int]()
    left = 4 * sum(section.size for section in elf.code)
    while todo:
        bounds = elf.function_at(todo.pop())
        if bounds is None or bounds[0] in seen:
            continue
        start, end = bounds
        seen[start] = end
        left -= end - start
        if left < 0:
            raise WheelError(f"{elf.name} has functions that overlap each other")
        for target in branches.targets(elf.code_bytes(start, end), start):
            stub = elf.code_bytes(target, target + 16)
            through = branches.slot(stub, target) if stub else None
            todo.append(target if through is None else elf.slots.get(through, 0))
    return sorted(seen.items())
