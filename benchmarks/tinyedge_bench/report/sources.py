"""The files a report is made of: read one by one, so that one that cannot be read does not hide the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyedge.errors import ResultFileError, TinyEdgeError
from tinyedge_bench.report.checked_values import text
from tinyedge_bench.result_files import Document

_READ = "give a file that `tinyedge bench`, `eval`, `eval sweep` or llama-bench wrote"


@dataclass(frozen=True, slots=True)
class Sources:
    """The documents by short names (empty for a single one), and a sentence for each file that could not be read."""

    documents: tuple[tuple[str, Document], ...]
    unreadable: tuple[str, ...]

    def of_kinds(self, *kinds: str) -> list[tuple[str, Document]]:
        return [(name, document) for name, document in self.documents if document.kind in kinds]


def read_sources(paths: Sequence[Path]) -> Sources:
    """What can be read of `paths`. Raises the first file's error when that is nothing."""
    found: list[tuple[Path, Document]] = []
    errors: list[TinyEdgeError] = []
    for path in dict.fromkeys(paths):
        try:
            found.append((path, _read(path)))
        except TinyEdgeError as error:
            errors.append(error)
        except OSError as error:
            errors.append(ResultFileError(f"{path} cannot be read ({error.strerror})", "check the path"))
    if not found:
        raise errors[0] if errors else ResultFileError("no file of results was given", "name one or more")
    names = _short_names([path for path, _ in found])
    documents = tuple((name, document) for name, (_, document) in zip(names, found, strict=True))
    return Sources(documents, tuple(text(f"{error.problem}; {error.remedy}", 400) for error in errors))


def _read(path: Path) -> Document:
    from tinyedge_bench.speed.read_speed import read_document

    try:
        return read_document(path)
    except ResultFileError as error:
        if error.remedy.startswith("give a file"):
            raise ResultFileError(error.problem, _READ) from error
        raise


def _short_names(paths: Sequence[Path]) -> list[str]:
    """What tells each file from the others: its stem, with as many folders as that takes; nothing for a single file."""
    if len(paths) == 1:
        return [""]
    names = [text(_telling(path, [each for each in paths if each is not path]), 60) for path in paths]
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def _telling(path: Path, others: Sequence[Path]) -> str:
    for form in (Path.with_suffix, lambda each, _: each):
        own, rest = form(path, "").parts, [form(each, "").parts for each in others]
        for many in range(1, len(own) + 1):
            if all(each[-many:] != own[-many:] for each in rest):
                return "/".join(own[-many:])
    return path.stem
