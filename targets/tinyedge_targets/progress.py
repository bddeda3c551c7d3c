"""How long work tells how far it is: nothing here prints."""

from __future__ import annotations

from collections.abc import Callable

# Told the stage, how much of it is done, and of how much (0 where that is not known).
Progress = Callable[[str, int, int], None]
