"""Drafts from the text so far, against a plain search through it."""

from __future__ import annotations

import random

import pytest

from tinyedge.lookup import LookupDrafter


def last_place(text: list[int]) -> tuple[int, int]:
    """Where the longest match of the text's end (up to 4 tokens) last ended before the end, and its length; 0 without one."""
    for length in range(min(4, len(text) - 1), 0, -1):
        for end in range(len(text) - 1, length - 1, -1):
            if text[end - length : end] == text[-length:]:
                return end, length
    return 0, 0


def test_what_followed_the_last_tokens_before_is_proposed() -> None:
    assert LookupDrafter().propose([1, 2, 3, 4, 5, 6, 7, 2, 3, 4], 3) == [5, 6, 7]


def test_a_text_without_repetition_gives_nothing() -> None:
    drafter = LookupDrafter()
    assert drafter.propose([1, 2, 3, 4], 8) == []
    assert drafter.propose([], 8) == []
    assert drafter.propose([7], 8) == []


def test_a_text_that_repeats_itself_goes_on_repeating() -> None:
    assert LookupDrafter().propose([9, 1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]
    assert LookupDrafter().propose([3, 3], 4) == [3, 3, 3, 3]


def test_the_longer_match_is_taken_before_the_later_one() -> None:
    assert LookupDrafter().propose([1, 2, 3, 8, 5, 3, 9, 1, 2, 3], 1) == [8]


@pytest.mark.parametrize("limit", [-1, 0])
def test_no_more_than_the_limit(limit: int) -> None:
    drafter = LookupDrafter()
    assert drafter.propose([1, 1, 1], limit) == []
    assert len(drafter.propose([1, 1, 1, 1], 7)) == 7


def test_token_by_token_it_finds_what_a_search_finds() -> None:
    draw = random.Random(4)
    text = [draw.randrange(6) for _ in range(20)]
    for _ in range(300):
        drafter = LookupDrafter()  # a new one follows no copy
        found = drafter.propose(text, 4)
        place, length = last_place(text)
        if length:
            assert found[0] == text[place]
        else:
            assert found == []
        text += [draw.randrange(6)]


COPY = list(range(100, 140))


@pytest.mark.parametrize(
    ("edited", "next_tokens"),
    [
        ([100, 101, 102, 103, 104, 105, 106, 200], [108, 109, 110]),
        ([100, 101, 102, 103, 104, 105, 106, 200, 201], [109, 110, 111]),
        ([100, 101, 102, 103, 104, 105, 106, 109], [110, 111, 112]),
        ([100, 101, 102, 103, 104, 105, 106, 200, 107], [108, 109, 110]),
    ],
    ids=["one replaced", "two replaced", "two left out", "one put in"],
)
def test_a_copy_is_followed_across_an_edit(edited: list[int], next_tokens: list[int]) -> None:
    drafter = LookupDrafter()
    for count in range(1, len(edited)):
        drafter.propose([*COPY, 7, *edited[:count]], 3)
    assert drafter.propose([*COPY, 7, *edited], 3) == next_tokens


def test_a_copy_is_left_when_the_text_goes_elsewhere() -> None:
    drafter, text = LookupDrafter(), [*COPY, 7, *COPY[:8]]
    drafter.propose(text, 3)
    for token in range(300, 306):
        text.append(token)
        drafter.propose(text, 3)
    assert drafter.propose(text, 3) == []


def test_what_came_again_elsewhere_is_taken_before_a_copy_that_is_lost() -> None:
    phrase = [50, 51, 52, 53, 54, 55]
    drafter, text = LookupDrafter(), [*COPY, *phrase, 7, *COPY[:8]]
    drafter.propose(text, 3)
    for token in phrase[:4]:
        text.append(token)
        found = drafter.propose(text, 2)
    assert found == phrase[4:]


def test_a_longer_match_is_surer() -> None:
    drafter, text = LookupDrafter(), list(range(40))
    levels = []
    for length in (1, 2, 4, 8, 16, 32):
        drafter.propose([*text, 99, *text[:length]], 4)
        levels.append(drafter.sureness)
    assert levels == sorted(set(levels))


def test_another_text_begins_anew() -> None:
    drafter = LookupDrafter()
    drafter.propose([1, 2, 3, 1, 2], 4)
    assert drafter.propose([5, 6, 7, 8, 5, 6], 2) == [7, 8]
    assert drafter.propose([5, 6], 2) == []
    drafter.close()
    assert drafter.propose([1, 2, 3, 1, 2], 1) == [3]


def test_an_edited_copy_is_followed_across_its_changes() -> None:
    draw = random.Random(6)
    original = [draw.randrange(200) for _ in range(400)]
    copy = [draw.randrange(200) if draw.random() < 0.05 else token for token in original]
    drafter, text, right = LookupDrafter(), list(original), 0
    for token in copy:
        right += drafter.propose(text, 1) == [token]
        text.append(token)
    assert right > 0.9 * len(copy)
