"""Ends a text at the first stop string, wherever in a token that begins."""

from __future__ import annotations

from collections.abc import Sequence

MAX_STOPS = 64
MAX_STOP_LENGTH = 1024  # characters


class StopMatcher:
    """Passes a text on as it comes and ends it before the first of the stop strings.

    Only what may still become a stop string is held back. The stop string that is complete first ends the text; when two
    are complete with the same character, the one that began first. Raises ValueError, one sentence, for an empty stop
    string, too many or too long ones.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if len(stops) > MAX_STOPS:
            raise ValueError(f"there are {len(stops)} stop strings and at most {MAX_STOPS} may be")
        for stop in stops:
            if not 0 < len(stop) <= MAX_STOP_LENGTH:
                raise ValueError(f"a stop string must have 1 to {MAX_STOP_LENGTH} characters, not {len(stop)}")
        self._stops = tuple(dict.fromkeys(stops))
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """What of the text is certain now, and whether a stop string ended it; after that nothing more may be fed."""
        text = self._held + text
        found = [(place + len(stop), place) for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        keep = self._open_length(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What was held back, when the text ends without a stop string."""
        held, self._held = self._held, ""
        return held

    def _open_length(self, text: str) -> int:
        """The length of the longest end of `text` that begins a stop string."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
