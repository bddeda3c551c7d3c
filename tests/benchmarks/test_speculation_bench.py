"""The scripted model says its script whatever is drafted, and the script is edited as much as it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_gguf import tiny_parts, write

from tinyedge.native.context import ContextSettings
from tinyedge.native.model import Model
from tinyedge.native.sampler import Sampler
from tinyedge.sampling import Sampling
from tinyedge_bench.speculation import Edit, ScriptedContext, Speeds, edit_speeds, summary


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model") / "tiny.gguf", tiny_parts())


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    with Model(path) as opened:
        yield opened


def test_each_row_says_the_token_at_its_position(model: Model) -> None:
    script = [1, 270, 271, 272, 273, 274, 275, 276]
    settings = ContextSettings(context=32, threads=1, outputs=4)
    with ScriptedContext(model, settings, script) as context, Sampler(model, Sampling(temperature=0.0)) as sampler:
        context.decode_all(script[:2])
        assert sampler.sample(context) == 271
        context.decode(271)
        assert sampler.sample(context) == 272
        context.decode_rows([272, 5, 5])  # what was guessed does not matter
        assert [sampler.sample(context, row) for row in range(3)] == [273, 274, 275]
        assert context.remove(4)
        context.decode(273)
        assert sampler.sample(context) == 274


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.05, 5, 40), (0.5, 150, 270)])
def test_as_many_places_are_edited_as_asked_for(model: Model, share: float, least: int, most: int) -> None:
    edit = Edit.drawn(model, 400, share)
    text = edit.prompt[1:]
    assert edit.prompt[0] == model.bos
    assert len(text) == 400
    assert least <= _edits(text, edit.answer) <= most


def _edits(one: list[int], other: list[int]) -> int:
    """Words replaced, left out or put in between the two."""
    row = list(range(len(other) + 1))
    for place, word in enumerate(one, 1):
        before, row[0] = row[0], place
        for column, token in enumerate(other, 1):
            before, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, before + (word != token))
    return row[-1]


def test_both_ways_say_the_script_and_copies_are_mostly_accepted(path: Path) -> None:
    copied, unlike = edit_speeds(path, 1, 40, [0.0, 1.0], 1)
    assert copied.acceptance is None or copied.acceptance > 0.5
    assert len(copied.plain) == len(unlike.lookup) == 1


def test_a_row_says_what_was_measured() -> None:
    speeds = Speeds(Edit(0.05, [1] * 10, [2] * 12), [10.0, 20.0, 30.0], [20.0, 30.0, 75.0], 0.75)
    assert summary([speeds], 2) == [
        {
            "what": "12 tokens, 5% of the places edited, 2 threads",
            "plain": "20.0 tokens/s",
            "lookup": "30.0 tokens/s",
            "ratio": "2.00 (from 1.50 to 2.50)",
            "acceptance": "75%",
        }
    ]
