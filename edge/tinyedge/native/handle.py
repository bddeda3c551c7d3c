"""What every native object of ours has in common: it is freed once, also when it is only half made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from tinyedge.errors import NativeError
from tinyedge.native import log


class Handle:
    """A native object that is freed once, by `close` or at the end of a `with` block."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Any:
        return self

    def __exit__(self, _type: type[BaseException] | None, _value: BaseException | None, _: TracebackType | None) -> None:
        self.close()


@contextmanager
def freeing(handle: Handle) -> Iterator[None]:
    """Closes the half-made `handle` when an exception, such as that of Ctrl-C, ends the block."""
    try:
        yield
    except BaseException:
        handle.close()
        raise


def failure(what: str) -> NativeError:
    """The error that llama.cpp `what` ("failed to ..."), with the cause as its log gives it."""
    said = log.cause()
    return NativeError(f"llama.cpp {what}" + (f' ("{said}")' if said else ""))
