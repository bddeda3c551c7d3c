"""The README shows what was measured and recorded."""

from __future__ import annotations

import re

from tinyedge_bench import readme


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
