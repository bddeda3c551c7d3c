"""From boards to wheels: one build for all the boards that can share it, packed and proven."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tinyedge.errors import OutputError
from tinyedge_targets.boards import Board
from tinyedge_targets.build import Build, build_libraries, plan_build
from tinyedge_targets.cache import cache_folder
from tinyedge_targets.pack import pack
from tinyedge_targets.progress import Progress
from tinyedge_targets.sdist import fetch_sdist, installed_version


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltWheel:
    """A wheel and the boards it was asked for. `seconds` is the time to compile, 0 when the cache had the libraries."""

    path: Path
    boards: tuple[Board, ...]
    title: str
    version: str
    compiler: str
    seconds: float

    @property
    def size(self) -> int:
        """The wheel's size in bytes."""
        return self.path.stat().st_size


def group_boards(wanted: Sequence[Board], *, single: bool) -> dict[Build, tuple[Board, ...]]:
    """The builds that `wanted` needs, each once, with the boards it is for."""
    groups: dict[Build, tuple[Board, ...]] = {}
    for board in wanted:
        build = plan_build(board, single=single)
        groups[build] = (*groups.get(build, ()), board)
    return groups


@contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """A new folder inside `folder`, for wheels that are not proven yet; removed with what is left in it.

    Raises OutputError when `folder` cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=".unproven-", dir=folder)
    except OSError as error:
        raise OutputError(f"{folder} is not a folder that can be written ({error.strerror})") from error
    with temporary as path:
        yield Path(path)


def deliver(wheel: BuiltWheel, folder: Path) -> BuiltWheel:
    """Puts a wheel into `folder` for good, in place of an older one of its name."""
    return replace(wheel, path=wheel.path.replace(folder / wheel.path.name))


def make_wheels(
    wanted: Sequence[Board], folder: Path, *, single: bool, version: str | None, progress: Progress
) -> tuple[BuiltWheel, ...]:
    """The wheels for `wanted` in `folder`. `version` None means the installed llama-cpp-python's, or the newest.

    Raises BuildError, BoardError, OutputError and DiskSpaceError.
    """
    groups = group_boards(wanted, single=single)
    progress("fetch", 0, 0)
    sdist = fetch_sdist(version or installed_version(), cache_folder("logs") / "download.log")
    made = []
    for build, boards in groups.items():
        built = build_libraries(build, sdist, progress=progress)
        progress("pack", 0, 0)
        made.append(
            BuiltWheel(
                path=pack(built, sdist.version, folder),
                boards=boards,
                title=build.title,
                version=sdist.version,
                compiler=built.compiler,
                seconds=built.seconds,
            )
        )
    return tuple(made)
