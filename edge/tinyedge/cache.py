"""Where tinyedge keeps what it made or measured once, and how a file gets there whole."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import overload

from tinyedge.errors import OutputError

CACHE_REMEDY = "set XDG_CACHE_HOME to a folder you can write"


@overload
def cache_folder() -> Path: ...
@overload
def cache_folder(*, needed: bool) -> Path | None: ...
def cache_folder(*, needed: bool = True) -> Path | None:
    """The folder for quantized models, measurements and the like: XDG_CACHE_HOME or the system's usual place. It is not made.

    Without a home folder OutputError is raised, or None returned when it is not `needed`.
    """
    chosen = os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen) / "tinyedge"
    try:
        home = Path.home()
    except RuntimeError as error:
        if not needed:
            return None
        raise OutputError("there is no home folder to keep cached files in", CACHE_REMEDY) from error
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "tinyedge"


def write_atomically(path: Path, content: bytes) -> None:
    """Puts `content` at `path`, whole or not at all; its folder is made where it is missing. Raises OSError.

    Only this user may read it: what is kept may hold somebody's text.
    """
    import tempfile

    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}-")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
