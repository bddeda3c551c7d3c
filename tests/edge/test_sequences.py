"""Several texts in one context: their logits are those of each text alone, in the order of the tokens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from tiny_gguf import tiny_parts, write

from tinyedge.errors import NativeError
from tinyedge.native.context import Context, ContextSettings
from tinyedge.native.model import Model
from tinyedge.native.sequences import Floats, SequenceContext

TEXT = list(range(5, 25))
SETTINGS = ContextSettings(context=256, threads=1, outputs=64, sequences=4, unified=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with Model(write(tmp_path_factory.mktemp("model") / "tiny.gguf", tiny_parts())) as opened:
        yield opened


@pytest.fixture(scope="module")
def alone(model: Model) -> Floats:
    """Each row of the text's logits, (tokens, vocabulary), from a context of its own."""
    with Context(model, ContextSettings(context=64, threads=1, outputs=len(TEXT))) as context:
        context.decode_rows(TEXT)
        return np.array([context.logits(row)[:] for row in range(len(TEXT))], dtype=np.float32)


@pytest.mark.parametrize("unified", [False, True])
def test_texts_side_by_side_have_the_logits_of_each_alone(model: Model, alone: Floats, unified: bool) -> None:
    settings = ContextSettings(context=256, threads=1, outputs=64, sequences=4, unified=unified)
    count = len(TEXT)
    with SequenceContext(model, settings) as context:
        texts = [0] * count + [3] * count
        logits = context.read(TEXT * 2, [*range(count)] * 2, texts, [1] * (2 * count))
        np.testing.assert_allclose(logits, np.concatenate([alone, alone]), atol=1e-4)


def test_texts_that_begin_alike_share_what_was_read(model: Model, alone: Floats) -> None:
    with SequenceContext(model, SETTINGS) as context:
        assert context.read(TEXT[:8], range(8), [0] * 8).shape == (0, model.vocabulary_size)
        context.copy(0, 1)
        context.copy(0, 2)
        interleaved = [(token, 8 + index, text) for index, token in enumerate(TEXT[8:]) for text in (1, 2)]
        tokens, positions, texts = zip(*interleaved, strict=True)
        logits = context.read(tokens, positions, texts, [1] * len(tokens))
        np.testing.assert_allclose(logits[0::2], alone[8:], atol=1e-4)
        np.testing.assert_allclose(logits[1::2], alone[8:], atol=1e-4)


def test_only_the_rows_that_are_wanted_come_in_the_order_of_the_tokens(model: Model, alone: Floats) -> None:
    wanted = np.zeros(len(TEXT), dtype=np.int8)
    wanted[[2, 7, 19]] = 1
    with SequenceContext(model, SETTINGS) as context:
        logits = context.read(TEXT, range(len(TEXT)), [1] * len(TEXT), wanted)
        np.testing.assert_allclose(logits, alone[[2, 7, 19]], atol=1e-4)


def test_a_text_can_be_cut_and_gone_on_with(model: Model, alone: Floats) -> None:
    with SequenceContext(model, SETTINGS) as context:
        context.read([*TEXT[:10], 3, 3, 3], range(13), [2] * 13)
        assert context.forget(2, 10)
        logits = context.read(TEXT[10:], range(10, 20), [2] * 10, [1] * 10)
        np.testing.assert_allclose(logits, alone[10:], atol=1e-4)


def test_what_does_not_fit_is_said(model: Model) -> None:
    with SequenceContext(model, ContextSettings(context=16, threads=1, sequences=2, unified=True)) as context:
        with pytest.raises(ValueError, match="a batch takes 1 to 16"):
            context.read(TEXT, range(20), [0] * 20)
        with pytest.raises(ValueError, match="3 rows of logits were asked for"):
            context.read(TEXT[:3], range(3), [0] * 3, [1] * 3)
        with pytest.raises(NativeError, match="no room"):
            for start in range(0, 1024, 16):  # llama.cpp makes room for no less than 256
                context.read(TEXT[:16], range(start, start + 16), [1] * 16)
        context.clear()
        assert context.read(TEXT[:2], [0, 0], [0, 1], [1, 1]).shape == (2, model.vocabulary_size)
