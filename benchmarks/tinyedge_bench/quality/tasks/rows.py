"""The lines of a task file from a stranger, as values of which each access checks what it finds and names the line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyedge.errors import TaskFileError

MOST_BYTES = 256 << 20  # the largest published one, HellaSwag's training set, has 47 MB
MOST_CHARACTERS = 1 << 17  # of one field; the longest passage of BoolQ has under 5,000
MOST_ANSWERS = 26


@dataclass(frozen=True, slots=True)
class Row:
    """One JSON object of a file. `label` is what a file of labels beside it says of this line."""

    fields: dict[str, Any]
    where: str
    label: str | None = None

    def has(self, *names: str) -> bool:
        return all(name in self.fields for name in names)

    def text(self, name: str, *, blank: bool = False) -> str:
        return checked_text(self._value(name), name, self.where, blank=blank)

    def texts(self, name: str) -> tuple[str, ...]:
        """2 to 26 texts."""
        values = self._value(name)
        if not isinstance(values, list) or not 2 <= len(values) <= MOST_ANSWERS:
            raise self.error(f'"{name}" is no list of 2 to {MOST_ANSWERS} texts')
        return tuple(checked_text(value, name, self.where, blank=True) for value in values)

    def part(self, name: str) -> Row:
        """The object in a field, as a row of its own."""
        value = self._value(name)
        if not isinstance(value, dict):
            raise self.error(f'"{name}" is no object')
        return Row(value, self.where)

    def parts(self, name: str) -> tuple[Row, ...]:
        """2 to 26 objects."""
        values = self._value(name)
        if not isinstance(values, list) or not 2 <= len(values) <= MOST_ANSWERS:
            raise self.error(f'"{name}" is no list of 2 to {MOST_ANSWERS} answers')
        if not all(isinstance(value, dict) for value in values):
            raise self.error(f'"{name}" holds something that is no object')
        return tuple(Row(value, self.where) for value in values)

    def number(self, name: str, count: int, what: str, *, first: int = 0) -> int:
        """Which of `count` is named by the field, or by the label beside it where the field is missing or empty."""
        value = self.fields.get(name)
        if value is None or value == "":
            value = self.label
        if value is None or value == "":
            raise self.error(f'"{name}" is missing', "give a file with answers: those of a test set are often held back")
        if isinstance(value, bool) or not isinstance(value, int | str) or (isinstance(value, str) and len(value) > 9):
            raise self.error(f'"{name}" is {value!r:.40}, not a number')
        try:
            number = int(value)
        except ValueError:
            raise self.error(f'"{name}" is {value!r:.40}, not a number') from None
        if not first <= number < first + count:
            raise self.error(f'"{name}" is {number if abs(number) < 1e9 else "far too large"}, of {count} {what}')
        return number - first

    def error(self, what: str, remedy: str | None = None) -> TaskFileError:
        return TaskFileError(f"{self.where}: {what}", remedy)

    def _value(self, name: str) -> Any:
        if name not in self.fields:
            raise self.error(f'"{name}" is missing')
        return self.fields[name]


def json_rows(path: Path, labels: list[str] | None = None) -> Iterator[Row]:
    """The objects of a JSON Lines file, one per line; blank lines are passed over. Raises TaskFileError, OSError."""
    count = 0
    for number, line in text_lines(path):
        if not line.strip():
            continue
        where = f"{path.name} line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TaskFileError(f"{where}: not JSON") from error
        if not isinstance(value, dict):
            raise TaskFileError(f"{where}: no JSON object")
        if labels is not None and count >= len(labels):
            raise TaskFileError(f"{where}: its file of labels has only {len(labels)}")
        yield Row(value, where, labels[count] if labels is not None else None)
        count += 1
    if labels is not None and count < len(labels):
        raise TaskFileError(f"{path.name} has {count} questions and its file of labels {len(labels)}")


def csv_rows(path: Path, columns: int) -> Iterator[tuple[str, list[str]]]:
    """(where, fields) of each record. Raises TaskFileError, OSError."""
    text = "".join(line for _, line in text_lines(path))
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        for fields in reader:
            where = f"{path.name} line {reader.line_num}"
            if len(fields) != columns:
                raise TaskFileError(f"{where}: {len(fields)} columns, not {columns}")
            yield where, fields
    except csv.Error as error:
        raise TaskFileError(f"{path.name} line {reader.line_num}: not CSV ({error})") from error


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line with its end) of a UTF-8 file, with or without a mark. Raises TaskFileError, OSError."""
    size = path.stat().st_size
    if not path.is_file():
        raise TaskFileError(f"{path.name} is no file")
    if size > MOST_BYTES:
        raise TaskFileError(f"{path.name} is larger than any task ({size} bytes)")
    for number, raw in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True), 1):
        try:
            yield number, raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TaskFileError(f"{path.name} line {number}: not UTF-8") from error


def checked_text(value: Any, name: str, where: str, *, blank: bool = False) -> str:
    """`value` if it is a text that can be tokenized, and not blank unless it may be."""
    if not isinstance(value, str):
        raise TaskFileError(f'{where}: "{name}" is no text')
    if len(value) > MOST_CHARACTERS:
        raise TaskFileError(f'{where}: "{name}" has {len(value)} characters, more than {MOST_CHARACTERS}')
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise TaskFileError(f'{where}: "{name}" holds half of a character (a lone surrogate)')
    if not blank and not value.strip():
        raise TaskFileError(f'{where}: "{name}" is empty')
    return value
