"""The scripted model says its script whatever is drafted, and the script is edited as much as it says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import tiny_parts, write

from tinyedge.engine import DRAFT_ROWS
from tinyedge.lookup import LookupDrafter
from tinyedge.native.context import ContextSettings
from tinyedge.native.model import Model
from tinyedge.native.sampler import Sampler
from tinyedge.sampling import Sampling
from tinyedge.speculation import Speculator
from tinyedge_bench.suite.speculation import Edit, ScriptedContext, Speeds, edit_speeds, summary

# Rows of a pass and its time in single steps, as measured.
TWO_CORES = ((1, 1.0), (4, 3.1), (16, 6.5), (17, 7.0))


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


class Timed(ScriptedContext):
    """A context whose passes take, by the clock, what they take on two cores with the 1.1B shape."""

    seconds = 0.0

    def decode(self, token: int) -> None:
        super().decode(token)
        self.seconds += 0.02

    def decode_rows(self, tokens: Sequence[int]) -> None:
        super().decode_rows(tokens)
        rows, times = zip(*TWO_CORES, strict=True)
        self.seconds += 0.02 * float(np.interp(len(tokens), rows, times))


@pytest.mark.parametrize(("share", "least"), [(0.0, 2.0), (0.02, 1.6), (0.05, 1.2), (1.0, 0.97)])
def test_copies_pay_at_the_costs_of_two_cores_and_other_texts_cost_little(model: Model, share: float, least: float) -> None:
    edit = Edit.drawn(model, 400, share)
    settings = ContextSettings(context=1024, threads=1, outputs=DRAFT_ROWS)
    with Timed(model, settings, edit.prompt + edit.answer) as context, Sampler(model, Sampling(temperature=0.0)) as sampler:
        context.decode_all(edit.prompt)
        speculator = Speculator(context, LookupDrafter(), clock=lambda: context.seconds)
        cached, said = list(edit.prompt), [sampler.sample(context)]
        while len(said) < len(edit.answer):
            said += speculator.step(cached, said[-1], sampler, len(edit.answer) - len(said) - 1)
    assert said == edit.answer
    assert 0.02 * (len(said) - 1) / context.seconds >= least


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
