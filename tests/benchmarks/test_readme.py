"""The README shows what was measured and recorded."""

from __future__ import annotations

import re

import pytest

from tinyedge_bench import readme
from tinyedge_bench.results import kept


def test_the_readme_is_what_the_kept_results_say() -> None:
    assert readme.render(readme.README.read_text()) == readme.README.read_text()


def test_every_block_the_readme_names_exists_and_is_filled() -> None:
    text = readme.README.read_text()
    names = re.findall(r"<!-- begin ([\w-]+) -->", text)
    assert set(names) == set(readme.BLOCKS)
    assert all(re.search(rf"<!-- begin {name} -->\n.+\n<!-- end {name} -->", text, re.DOTALL) for name in names)


def test_the_commands_shown_are_commands_there_are() -> None:
    text = readme.README.read_text()
    shown = set(re.findall(r"(?:^|\$ |/)tinyedge ([a-z]\w*)", text, re.MULTILINE))
    from tinyedge.cli.app import app

    assert shown <= {command.name for command in (*app.registered_commands, *app.registered_groups)}


def test_a_block_that_was_typed_by_hand_is_named() -> None:
    block = f"<!-- begin types -->\n{readme.BLOCKS['types']()}<!-- end types -->"
    assert readme.stale(block) == []
    assert readme.stale(f"{block}\n<!-- begin inputs -->\n1000 tokens/s\n<!-- end inputs -->") == ["inputs"]


def test_what_was_never_measured_is_said() -> None:
    with pytest.raises(FileNotFoundError, match="measure warp first"):
        kept("warp")
