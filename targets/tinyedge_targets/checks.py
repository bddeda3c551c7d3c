"""The result of one check on a wheel: what the proof is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was looked at (`name`, a short phrase), whether it holds, and what was found (`detail`, one line)."""

    name: str
    passed: bool
    detail: str
