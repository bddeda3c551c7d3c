"""The file that a measurement leaves: what was measured, on which machine, with which versions, and what is missing.

A JSON object, the same for `tinyedge bench`, `tinyedge eval` and `tinyedge eval sweep`:

    {"tinyedge": {"schema": 1, "kind": "speed"}, "date": "2026-01-31T12:00:00+00:00", "machine": {...}, "build": {...},
     "results": [{...}, ...], "missing": [{"what": "peer ollama", "reason": "..."}], ...}

A `speed` document may have more at its top, such as the ceilings that were measured; a reader takes what it knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tinyedge.errors import ResultFileError

SCHEMA = 1
KINDS = ("speed", "quality", "sweep")
MOST_BYTES = 64 << 20  # parsed, JSON takes many times its size

_OURS = "give a file that `tinyedge bench`, `tinyedge eval` or `tinyedge eval sweep` wrote with --json or -o FILE.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A case or a peer that gave no result, and why: one sentence."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A measurement. `results` are flat rows of what JSON can hold; `more` what only some kinds have, by its key."""

    kind: str
    date: str
    machine: Mapping[str, Any]
    build: Mapping[str, Any]
    results: Sequence[Mapping[str, Any]]
    missing: tuple[Missing, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            "tinyedge": {"schema": SCHEMA, "kind": self.kind},
            "date": self.date,
            "machine": dict(self.machine),
            "build": dict(self.build),
            **self.more,
            "results": [dict(row) for row in self.results],
            "missing": [asdict(each) for each in self.missing],
        }


def measured_here(
    kind: str, results: Sequence[Mapping[str, Any]], missing: Sequence[Missing] = (), more: Mapping[str, Any] | None = None
) -> Document:
    """A document of this machine and now."""
    return Document(
        kind=kind,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        machine=machine_object(),
        build=build_object(),
        results=tuple(results),
        missing=tuple(missing),
        more=more or {},
    )


def machine_object() -> dict[str, Any]:
    """Processor, cores, memory and system; no host name, no path."""
    import platform

    from tinyedge.backends import this_machine

    machine = this_machine()
    main = next((device for device in machine.devices if device.kind == "cpu"), None)
    return {
        "cpu": machine.cpu.name,
        "architecture": platform.machine(),
        "system": platform.platform(),
        "logical_cores": machine.cpu.logical,
        "physical_cores": machine.cpu.physical,
        "performance_cores": machine.cpu.performance,
        "cpu_quota": machine.cpu.quota,
        "memory_bytes": main.memory_total if main else 0,
        "free_memory_bytes": machine.free_bytes,
        "devices": [f"{device.kind}: {device.description}" for device in machine.devices],
    }


def build_object() -> dict[str, Any]:
    """The versions of tinyedge, llama-cpp-python and ggml."""
    from tinyedge import __version__
    from tinyedge.native.library import versions

    return {"tinyedge": __version__, **asdict(versions())}


def read_json_document(path: Path) -> Document:
    """The document in a JSON file. Raises ResultFileError, OSError."""
    if path.stat().st_size > MOST_BYTES:
        raise ResultFileError(f"{path} is larger than any file of results ({path.stat().st_size} bytes)", _OURS)
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ResultFileError(f"{path} is not JSON", _OURS) from error
    return as_document(value, path)


def as_document(value: Any, path: Path) -> Document:
    """The document that `value`, parsed JSON, is; `path` is named in errors. Raises ResultFileError."""
    head = value.get("tinyedge") if isinstance(value, dict) else None
    if not isinstance(head, dict):
        if isinstance(value, dict) and isinstance(value.get("build"), dict) and "results" in value:
            raise ResultFileError(f"{path} is of an older schema, from before tinyedge numbered them")
        raise ResultFileError(f"{path} is not a file of tinyedge's results", _OURS)
    schema, kind = head.get("schema"), head.get("kind")
    if schema != SCHEMA:
        age = "an older" if isinstance(schema, int) and schema < SCHEMA else "a newer"
        raise ResultFileError(
            f"{path} is of {age} schema ({schema!r:.40}; this tinyedge reads {SCHEMA})",
            "measure again" if age == "an older" else "upgrade tinyedge",
        )
    if kind not in KINDS:
        raise ResultFileError(f"{path} holds results of an unknown kind ({kind!r:.40})", _OURS)
    results, missing = value.get("results"), value.get("missing", [])
    shapes = (
        (isinstance(results, list) and all(isinstance(row, dict) for row in results), "results"),
        (isinstance(missing, list) and all(isinstance(each, dict) for each in missing), "missing"),
        (isinstance(value.get("machine"), dict), "machine"),
        (isinstance(value.get("build"), dict), "build"),
        (isinstance(value.get("date"), str), "date"),
    )
    wrong = next((name for fits, name in shapes if not fits), None)
    if wrong:
        raise ResultFileError(f'{path} is damaged: "{wrong}" is not what it must be', _OURS)
    known = {"tinyedge", "date", "machine", "build", "results", "missing"}
    return Document(
        kind=kind,
        date=value["date"],
        machine=value["machine"],
        build=value["build"],
        results=tuple(value["results"]),
        missing=tuple(Missing(what=str(each.get("what", "")), reason=str(each.get("reason", ""))) for each in missing),
        more={key: value[key] for key in value if key not in known},
    )
