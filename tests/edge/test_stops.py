"""Stop strings wherever they fall between the pieces of a text."""

from __future__ import annotations

import random
import re

import pytest

from tinyedge.stops import StopMatcher


def passed_on(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    """What comes out before the first stop string, and whether there was one."""
    matcher = StopMatcher(stops)
    out = ""
    for piece in pieces:
        text, hit = matcher.feed(piece)
        out += text
        if hit:
            return out, True
    return out + matcher.flush(), False


def test_a_stop_string_over_three_pieces() -> None:
    assert passed_on(["###"], ["a#", "#", "# b"]) == ("a", True)


def test_what_only_began_like_a_stop_string_is_kept() -> None:
    assert passed_on(["###"], ["a##", " b", "#"]) == ("a## b#", False)


def test_text_is_held_back_only_while_it_may_become_a_stop_string() -> None:
    matcher = StopMatcher(["\nUser:"])
    assert matcher.feed("yes.\nUs") == ("yes.", False)
    assert matcher.feed("age") == ("\nUsage", False)


def test_an_overlapping_beginning_is_found() -> None:
    assert passed_on(["aab"], ["aa", "a", "b"]) == ("a", True)


def test_the_stop_string_that_is_complete_first_wins() -> None:
    assert passed_on(["bc", "abcd"], ["abcd"]) == ("a", True)
    assert passed_on(["abc", "bc"], ["xabc"]) == ("x", True)


def test_any_cut_into_pieces_gives_the_same_as_the_whole_text() -> None:
    noise = random.Random(7)
    for _ in range(3000):
        text = "".join(noise.choices("abé", k=noise.randint(0, 12)))
        stops = ["".join(noise.choices("abé", k=noise.randint(1, 4))) for _ in range(noise.randint(1, 3))]
        cuts = sorted(noise.choices(range(len(text) + 1), k=noise.randint(0, 6)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        ends = [(m.start() + len(stop), m.start()) for stop in stops for m in re.finditer(f"(?={re.escape(stop)})", text)]
        expected = (text[: min(ends)[1]], True) if ends else (text, False)
        assert passed_on(stops, pieces) == expected, (stops, pieces)


@pytest.mark.parametrize("stops", [[""], ["a" * 2000], ["a"] * 65])
def test_stop_strings_without_meaning_are_refused(stops: list[str]) -> None:
    with pytest.raises(ValueError, match="stop string"):
        StopMatcher(stops)
