"""The settings that `tinyedge tune` found, kept for each machine and shape of model, and given to who loads such a model."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, fields, replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from tinyedge.backends import choose
from tinyedge.cache import write_atomically
from tinyedge.errors import MemoryFitError, OutputError
from tinyedge.load_plan import LoadPlan, Machine, Request, Setting
from tinyedge.machine.bandwidth import machine_key
from tinyedge.memory import DEFAULT_BATCH
from tinyedge.model_facts import ModelFacts
from tinyedge.native.library import package_version

FORMAT = 1
_MOST_BYTES = 1 << 20
_MOST_ENTRIES = 500
_LIMITS = {"threads": (1, 512), "batch_threads": (1, 512), "batch": (1, 65536)}
_FLASH = ("auto", "on", "off")
_UNQUANTIZED = ("F32", "F16", "BF16")


def config_file() -> Path | None:
    """Where the settings are kept: tuned.json in XDG_CONFIG_HOME/tinyedge or ~/.config/tinyedge; None without a home."""
    chosen = os.environ.get("XDG_CONFIG_HOME")
    if chosen:
        return Path(chosen) / "tinyedge" / "tuned.json"
    try:
        return Path.home() / ".config" / "tinyedge" / "tuned.json"
    except RuntimeError:
        return None


def shape_key(facts: ModelFacts) -> str:
    """16 hexadecimal digits that two models share when the same settings suit them: same architecture, sizes and types."""
    types = [(row.type.name, row.tensors, row.bytes) for row in facts.tensor_types]
    heads = (facts.heads, facts.kv_heads, facts.head_dim_k)
    sizes = (facts.layers, facts.hidden, facts.ffn, facts.vocabulary, facts.experts, facts.experts_used)
    shape = (facts.architecture, heads, sizes, types)
    return hashlib.sha256(repr(shape).encode()).hexdigest()[:16]


def check_writable() -> None:
    """Makes the folder of the settings. Raises OutputError when they cannot be kept there; does nothing without a home."""
    path = config_file()
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise _not_kept(path, error) from error


def _not_kept(path: Path, error: OSError) -> OutputError:
    remedy = "set XDG_CONFIG_HOME to a folder you can write, or give --dry-run"
    return OutputError(f"the settings cannot be kept in {path} ({error.strerror})", remedy)


def keep(facts: ModelFacts, setting: Setting, gains: dict[str, float]) -> Path | None:
    """Keeps the setting for this machine and models of this shape; the file, or None where there is no home folder.

    Raises OutputError when the file cannot be written.
    """
    path = config_file()
    if path is None:
        return None
    entries = _entries(path)
    entries.pop(_key(facts), None)
    entries[_key(facts)] = {
        **asdict(setting),
        "model": f"{facts.name} {facts.file_type}"[:80],
        "gains": {test: round(gain, 3) for test, gain in gains.items()},
        "llama_cpp_python": package_version(),
        "tuned_at": date.today().isoformat(),
    }
    newest = dict(list(entries.items())[-_MOST_ENTRIES:])
    _write(path, newest)
    return path


def forget(facts: ModelFacts) -> bool:
    """Takes the kept setting back; whether there was one. Raises OutputError when the file cannot be written."""
    path = config_file()
    entries = _entries(path) if path else {}
    if path is None or entries.pop(_key(facts), None) is None:
        return False
    _write(path, entries)
    return True


def _write(path: Path, entries: dict[str, Any]) -> None:
    try:
        write_atomically(path, json.dumps({"format": FORMAT, "settings": entries}, indent=2).encode() + b"\n")
    except OSError as error:
        raise _not_kept(path, error) from error


def kept(facts: ModelFacts) -> Setting | None:
    """What was found for this machine, model shape and version of llama-cpp-python; None when it never was."""
    path = config_file()
    entry = _entries(path).get(_key(facts)) if path else None
    if not isinstance(entry, dict) or entry.get("llama_cpp_python") != package_version():
        return None
    return _setting(entry)


def tuned_plan(facts: ModelFacts, request: Request, machine: Machine) -> LoadPlan:
    """The plan of `choose`, with what was tuned on this machine in place of what was not asked for.

    Only the CPU backend is tuned. Raises as `choose` does.
    """
    found = kept(facts)
    if found is None:
        return choose(facts, request, machine)
    wanted = request
    if request.batch is None:
        with suppress(MemoryFitError):  # a batch that needs more memory than there is now is no reason to refuse
            wanted = replace(request, batch=found.batch)
            plan = choose(facts, replace(wanted, strict=True), machine)
            return _applied(plan, request, found)
    return _applied(choose(facts, request, machine), request, found)


def _applied(plan: LoadPlan, request: Request, found: Setting) -> LoadPlan:
    if plan.backend != "cpu":
        return plan
    changes: dict[str, Any] = {}
    if request.threads is None:
        changes |= {"threads": found.threads, "batch_threads": found.batch_threads}
        changes |= {} if request.affinity else {"affinity": found.affinity}
    if request.flash == "auto" and plan.kv_type in _UNQUANTIZED:
        changes["flash"] = found.flash
    if request.mmap and not request.mlock:
        changes |= {"mmap": found.mmap, "mlock": found.mlock}
    changes = {name: value for name, value in changes.items() if value != getattr(plan, name)}
    if changes.get("batch_threads") == changes.get("threads", plan.threads):
        del changes["batch_threads"]
    told = _told(changes) + ([f"batch {plan.batch}"] if request.batch is None and plan.batch != DEFAULT_BATCH else [])
    reason = plan.reason
    if "threads" in changes:
        reason = re.sub(r"\d+ threads? \([^)]*\)", f"{_threads(found.threads)} (tuned)", reason, count=1)
    return replace(plan, **changes, reason=f"{reason}; tuned: {', '.join(told)}" if told else reason)


def _told(changes: dict[str, Any]) -> list[str]:
    """What the changes of a plan are, but for the threads, in a few words each."""
    words: dict[str, Callable[[Any], str]] = {
        "batch_threads": lambda count: f"{_threads(count)} for the prompt",
        "affinity": lambda cpus: f"bound to CPUs {', '.join(map(str, cpus))}" if cpus else "",
        "flash": lambda mode: f"flash attention {mode}",
        "mmap": lambda mapped: "" if mapped else "weights read, not mapped",
        "mlock": lambda locked: "weights locked in memory" if locked else "",
    }
    return [word for name, value in changes.items() if name in words and (word := words[name](value))]


def _threads(count: int) -> str:
    return f"{count} thread" + ("s" if count != 1 else "")


def describe(setting: Setting) -> str:
    """`1 thread, 2 for the prompt, batch 256, no flash attention`."""
    parts = [
        _threads(setting.threads),
        f"{setting.batch_threads} for the prompt" if setting.batch_threads != setting.threads else "",
        f"batch {setting.batch}",
        f"bound to CPUs {', '.join(map(str, setting.affinity))}" if setting.affinity else "",
        "no flash attention" if setting.flash == "off" else "",
        "weights read, not mapped" if not setting.mmap else "",
        "weights locked in memory" if setting.mlock else "",
    ]
    return ", ".join(filter(None, parts))


def _key(facts: ModelFacts) -> str:
    return f"{machine_key()}-{shape_key(facts)}"


def _entries(path: Path) -> dict[str, Any]:
    """What the file holds; nothing when it is absent or damaged, which the next `keep` mends."""
    if not path.is_file():  # reading a pipe might wait for ever
        return {}
    try:
        with path.open("rb") as file:
            told = json.loads(file.read(_MOST_BYTES))
        entries = told["settings"] if told["format"] == FORMAT else {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}
    return entries if isinstance(entries, dict) else {}


def _setting(entry: dict[str, Any]) -> Setting | None:
    """The setting in an entry, None unless every value has a meaning: a person may have edited the file."""
    try:
        values = {field.name: entry[field.name] for field in fields(Setting)}
        values["affinity"] = tuple(values["affinity"])
    except (KeyError, TypeError):
        return None
    whole = all(type(values[name]) is int and low <= values[name] <= high for name, (low, high) in _LIMITS.items())
    flags = all(type(values[name]) is bool for name in ("mmap", "mlock"))
    cpus = all(type(cpu) is int and 0 <= cpu < 512 for cpu in values["affinity"])
    if not (whole and flags and cpus and values["flash"] in _FLASH and values["kv_type"] == "F16"):
        return None
    return Setting(**values)
