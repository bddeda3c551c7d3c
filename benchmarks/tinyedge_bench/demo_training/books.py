"""The text to train and measure on: folders of plain .txt books, as Project Gutenberg serves them."""

from __future__ import annotations

import re
from pathlib import Path


def clean(text: str) -> str:
    """Paragraphs on one line each with a blank line between, without Gutenberg's frame and `_emphasis_` marks."""
    text = text.replace("\r\n", "\n")
    start = re.search(r"^\*\*\* ?START OF.*$", text, re.MULTILINE)
    end = re.search(r"^\*\*\* ?END OF.*$", text, re.MULTILINE)
    text = text[start.end() if start else 0 : end.start() if end else len(text)].replace("_", "")
    paragraphs = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def read_books(folder: Path) -> list[str]:
    """The cleaned text of every .txt file of the folder, in order of name."""
    books = [clean(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.txt"))]
    if not books:
        raise SystemExit(f"error: no .txt file in {folder}; give a folder of plain text books")
    return books


def titles(folder: Path) -> list[str]:
    """Readable titles from the file names, in the order of `read_books`: `black-beauty.txt` gives Black Beauty."""
    stems = (path.stem for path in sorted(folder.glob("*.txt")))
    return [stem.replace("-s-", "'s-").replace("-", " ").title().replace("'S", "'s") for stem in stems]
