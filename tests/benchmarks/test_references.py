"""The published figures: complete, from somewhere, and beside the measurements that they belong to."""

from __future__ import annotations

from datetime import date
from urllib.parse import urlsplit

import pytest

from tinyedge_bench.speed.references import Reference, all_references, references_for

_TINYLLAMA = 1_100_048_384


@pytest.mark.parametrize("each", all_references(), ids=lambda each: f"{each.board} {each.model} {each.test}")
def test_every_figure_is_complete_and_from_somewhere(each: Reference) -> None:
    assert all((each.board, each.model, each.type, each.test, each.source))
    assert each.parameters >= 1_000_000 and 0 < each.tokens_per_s < 1e6
    assert (each.bits == 0) == (each.type == "not told")
    url = urlsplit(each.url)
    assert url.scheme == "https" and "." in url.netloc and len(url.path) > 1 and each.url.isascii() and " " not in each.url
    assert date(2026, 1, 1) <= date.fromisoformat(each.retrieved)


def test_no_figure_is_there_twice() -> None:
    keys = [(each.board, each.model, each.type, each.test, each.engine) for each in all_references()]
    assert len(set(keys)) == len(keys)


def test_tinyllamas_own_figures_stand_beside_tinyllama() -> None:
    found = references_for(_TINYLLAMA, "Q4_K_M")
    assert [(each.board, each.tokens_per_s) for each in found if "README" in each.source] == [
        ("Mac M2 16 GB", 71.8),
        ("NVIDIA A40", 7094.5),
    ]
    assert {"Raspberry Pi 5", "Raspberry Pi 4", "Jetson Orin Nano"} <= {each.board for each in found}
    assert found[0].bits == 4, "the nearest type first"


def test_other_sizes_and_far_types_do_not() -> None:
    assert references_for(3_836_672, "F16") == ()
    assert references_for(0, "Q4_0") == ()
    assert not any(each.bits == 4 for each in references_for(_TINYLLAMA, "F16"))
    assert references_for(7_241_732_096, "llama 7B F16") == ()
    assert {each.model for each in references_for(7_241_732_096, "llama 7B Q4_K - Medium")} == {"Llama 2 7B"}


def test_a_figure_goes_into_a_document() -> None:
    value = all_references()[0].as_object()
    assert {"board", "model", "type", "test", "tokens_per_s", "source", "url"} <= value.keys()
