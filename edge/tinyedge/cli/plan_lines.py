"""The report of `tinyedge plan` for a person: lines made from the object of `plan_report`."""

from __future__ import annotations

import textwrap
from typing import Any

from tinyedge.cli.output import format_bytes, format_count, printable
from tinyedge.fitting import size

_LABEL_WIDTH = 9


def report_lines(told: dict[str, Any], columns: int) -> list[str]:
    """The report for a person, lines of at most `columns` characters where words allow it."""
    plan, speed = told["plan"], told["speed"]
    name = printable(told["name"], 40) or printable(told["model"], 60)
    facts = [
        ("model", f"{name}: {told['type']}, {format_count(told['parameters'])} parameters, {format_bytes(told['file_bytes'])}"),
        ("machine", told["machine"]["name"]),
        ("", told["machine"]["reserve"]),
    ]
    lines = [*_wrapped(facts, columns), "", *_memory_lines(told["memory"]), ""]
    if plan is not None:
        facts = [("backend", plan["reason"])]
        facts += [("to fit", step) for step in plan["steps"]]
        facts += [("warning", warning) for warning in plan["warnings"]]
        facts += [("speed", _speed_words(speed))]
        facts += [("then" if number else "type", command) for number, command in enumerate(told["commands"])]
        lines += [*_wrapped(facts, columns), ""]
    lines += _context_lines(told["contexts"])
    if told["sizes"]:
        lines += ["", *_size_lines(told["sizes"], told["machine"]["memory_bytes"])]
    return lines


def _wrapped(facts: list[tuple[str, str]], columns: int) -> list[str]:
    lines = []
    for label, value in facts:
        if label in ("type", "then"):  # to be pasted, so it stays one line
            lines.append(f"{label:<{_LABEL_WIDTH}} {printable(value, 4096)}")
        elif value:
            width = max(columns - _LABEL_WIDTH - 1, 40)
            first, *others = textwrap.wrap(printable(value, 4096), width, break_long_words=False, break_on_hyphens=False)
            lines += [f"{label:<{_LABEL_WIDTH}} {first}", *(" " * (_LABEL_WIDTH + 1) + line for line in others)]
    return lines


def _memory_lines(memory: dict[str, Any]) -> list[str]:
    rows = [
        ("weights", memory["weights_bytes"], ""),
        (f"KV cache, {memory['kv_type']}", memory["kv_bytes"], ""),
        ("compute", memory["compute_bytes"], ""),
        ("together", memory["total_bytes"], ""),
    ]
    if memory["gpu_bytes"]:
        rows += [("of it on GPU", memory["gpu_bytes"], ""), ("GPU's free", memory["gpu_free_bytes"], "")]
    verdict = ", it fits" if memory["fits"] else ", it does not fit"
    rows.append(("free", memory["free_bytes"], verdict))
    return [
        f"memory at a context of {memory['context']} tokens and a batch of {memory['batch']}:",
        *(f"  {label:<15} {size(count):>9}{after}" for label, count, after in rows),
    ]


def _speed_words(speed: dict[str, Any]) -> str:
    if speed["tokens_per_s"] is None:
        return f"not known: {speed['basis']}"
    low, high = speed["tokens_per_s"]
    shares = " to ".join(f"{share:.0%}" for share in speed["share"])
    return (
        f"{_rate(low)} to {_rate(high)} tokens/s expected, from a full context to an empty one: {shares} of "
        f"{speed['bandwidth_bytes_per_s'] / 1e9:.3g} GB/s"
    )


def _rate(rate: float) -> str:
    return f"{rate:.1f}" if rate < 9.95 else f"{rate:.0f}"


def _context_lines(cells: list[dict[str, Any]]) -> list[str]:
    """A table of memory by context and KV type; what does not fit stands in brackets."""
    kinds = list(dict.fromkeys(cell["kv_type"] for cell in cells))
    rows: dict[int, list[str]] = {}
    for cell in cells:
        shown = size(cell["total_bytes"])
        rows.setdefault(cell["context"], []).append(f"{shown} " if cell["fits"] else f"({shown})")
    left = "" if all(cell["fits"] for cell in cells) else ", in brackets what does not fit"
    return [
        f"together by context and KV cache{left}:",
        "  " + f"{'tokens':>8}" + "".join(f"{kind:>12} " for kind in kinds),
        *("  " + f"{context:>8}" + "".join(f"{text:>13}" for text in texts) for context, texts in rows.items()),
    ]


def _size_lines(sizes: list[dict[str, Any]], shown: int) -> list[str]:
    """What each memory the board is sold with allows, and that the rest of the report is about the one of `shown` bytes."""
    lines = ["by memory:"]
    for row in sizes:
        told = f"context {row['context']}, KV {row['kv_type']}, batch {row['batch']}" if row["fits"] else "does not fit"
        rates = f", {' to '.join(map(_rate, row['tokens_per_s']))} tokens/s" if row["tokens_per_s"] else ""
        lines.append(f"  {format_bytes(row['memory_bytes']):>8}  {told}{rates}")
    return [*lines, f"the figures above are for {format_bytes(shown)}; --ram picks another"]
