"""`tinyedge pull`, `ls` and `rm`: models from the Hugging Face hub and what is on this machine."""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from pathlib import Path
from time import monotonic, time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyedge.cli.output import (
    byte_progress,
    format_bytes,
    format_count,
    format_seconds,
    print_json,
    print_line,
    printable,
    status,
)

MAX_NAME = 1000  # characters

if TYPE_CHECKING:
    from tinyedge.backends import LoadPlan
    from tinyedge.gguf_file import GGUFFile
    from tinyedge.hub.cache import CachedModel, Partial
    from tinyedge.hub.download import Fetched
    from tinyedge.hub.pull import Wanted
    from tinyedge.model_facts import ModelFacts

_PULL_EXAMPLES = """\b
Examples:
  tinyedge pull tinyllama
  tinyedge pull qwen2.5-0.5b:Q8_0
  tinyedge pull bartowski/SmolLM2-360M-Instruct-GGUF:Q5_K_M
"""


def pull(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A short name or ORG/NAME, followed by :TYPE or :FILE; Q4_K_M without.")
    ],
    revision: Annotated[str, typer.Option(metavar="NAME", help="A branch, tag or commit of the repository.")] = "main",
    force: Annotated[bool, typer.Option("--force", help="Download it even if it does not fit this machine's memory.")] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not use the network: say where it is, or that it is not.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Download a model from the Hugging Face hub, if it fits this machine; resumed, and checked against its checksum."""
    from tinyedge.hub.pull import find_on_hub, named, read_header_of

    wanted_name = named(name)
    if offline or _forbidden():
        _report_here(name, json)
        return
    from tinyedge.hub.download import check_disk, fetch, missing_bytes
    from tinyedge.hub.session import Hub

    hub = Hub()
    wanted = find_on_hub(hub, wanted_name, revision)
    if wanted.note and not json:
        status(printable(wanted.note))
    was_there = wanted.is_there
    facts, plan = _checked(read_header_of(hub, wanted), force=force or was_there)
    check_disk(wanted.place, wanted.file)
    if not (was_there or json):
        status(_what(wanted, facts, missing_bytes(wanted.place, wanted.file)))
    begun = monotonic()
    try:
        with byte_progress(printable(wanted.file.name, 60), quiet=json or was_there) as bar:
            fetched = fetch(hub, wanted.file, wanted.place, revision, bar)
    except KeyboardInterrupt:
        status("what has arrived stays: the same command goes on from there")
        raise
    seconds = monotonic() - begun
    if json:
        print_json(_pull_object(wanted, facts, plan, fetched, seconds))
        return
    status(f"{'here already' if was_there else _received(fetched, seconds)}{'; ' + plan.reason if plan else ''}")
    status(f"start it with: tinyedge run {name}")
    print_line(str(fetched.path))


pull.__doc__ = f"{pull.__doc__}\n\n{_PULL_EXAMPLES}"


def ls(json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False) -> None:
    """List the models on this machine: those of the Hugging Face hub and checkpoints that tinyedge quantized.

    Example: tinyedge ls
    """
    from tinyedge.cache import cache_folder
    from tinyedge.hub.cache import hub_folder, hub_models, own_models, partials

    hub = hub_folder()
    models, unfinished = hub_models(hub) + own_models(cache_folder(needed=False)), partials(hub)
    if json:
        print_json(
            {
                "models": [_model_object(model) for model in models],
                "partial": [{"repo": part.repo, "path": str(part.path), "bytes": part.bytes} for part in unfinished],
                "total_bytes": _total_bytes(models, unfinished),
            }
        )
        return
    if not models and not unfinished:
        status("there is no model on this machine yet; try: tinyedge pull tinyllama")
        return
    _print_table(models, unfinished)


def rm(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model as `tinyedge ls` names it.")],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a model that `tinyedge pull` downloaded or tinyedge quantized into its cache.

    Example: tinyedge rm qwen2.5-0.5b:Q8_0
    """
    from tinyedge.cache import cache_folder
    from tinyedge.errors import ModelNotFoundError
    from tinyedge.hub.cache import find_one, hub_folder, hub_models, own_models, partials, remove, remove_partials
    from tinyedge.hub.names import parse_name

    if not 0 < len(name) <= MAX_NAME:
        raise typer.BadParameter(f"a name has 1 to {MAX_NAME} characters", param_hint="NAME")
    hub, own = hub_folder(), cache_folder(needed=False)
    models = hub_models(hub) + own_models(own)
    model = _by_path(name, models) or find_one(name, models)
    wanted = parse_name(name)
    unfinished = [part for part in partials(hub) if model is None and wanted is not None and part.repo == wanted.repo]
    if model is None and not unfinished:
        remedy = "`tinyedge ls` lists what it deletes"
        if Path(name).exists():
            raise ModelNotFoundError(f"{name} is in none of the caches, and only from there `tinyedge rm` deletes", remedy)
        raise ModelNotFoundError(f"there is no model {name} on this machine", remedy)
    size = model.bytes if model is not None else sum(part.bytes for part in unfinished)
    what = str(model.path) if model is not None else f"the unfinished download of {unfinished[0].repo}"
    _confirm(f"delete {printable(what, 400)}, {format_bytes(size)}?", yes=yes)
    if model is None:
        assert hub is not None
        freed = remove_partials(hub, unfinished[0].repo)
    elif model.repo:
        assert hub is not None
        freed = remove(hub, model.repo, (model.file,))
    else:
        model.path.unlink()
        freed = model.bytes
    status(f"deleted; {format_bytes(freed)} are free again" if freed else "deleted; its content is still used by another model")


def _confirm(question: str, *, yes: bool) -> None:
    """Asks on a terminal; without one, nothing is deleted that was not agreed to with -y."""
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise typer.BadParameter("there is no terminal to ask on: confirm with -y")
    status(f"{question} [y/N] ", end="")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        status("nothing was deleted")
        raise typer.Exit(1)


def _by_path(name: str, models: list[CachedModel]) -> CachedModel | None:
    """The cached model at the path `name`, or in tinyedge's own cache under that file name."""
    absolute = Path(name).absolute()
    return next((model for model in models if model.path == absolute or (not model.repo and model.file == name)), None)


def _forbidden() -> bool:
    from tinyedge.hub.session import forbidden_by_environment

    return forbidden_by_environment()


def _report_here(name: str, json: bool) -> None:
    """What `pull` says without the network: where the model is. Raises OfflineError when it is not there."""
    from tinyedge.errors import OfflineError
    from tinyedge.hub.cache import find, hub_folder, hub_models

    model = find(name, hub_models(hub_folder()))
    if model is None:
        raise OfflineError(f"{name} is not on this machine, and the network is forbidden by --offline or HF_HUB_OFFLINE")
    if json:
        print_json(_model_object(model))
    else:
        status("here already")
        print_line(str(model.path))


def _checked(header: GGUFFile, *, force: bool) -> tuple[ModelFacts, LoadPlan | None]:
    """The model's facts and how it would be loaded here; with `force` what speaks against it is only said.

    Raises UnsupportedArchitectureError and MemoryFitError before anything is downloaded.
    """
    from tinyedge.backends import Request, choose, this_machine
    from tinyedge.errors import MemoryFitError, TinyEdgeError
    from tinyedge.model_facts import check_runnable, describe_model

    facts = describe_model(header)
    try:
        check_runnable(header)
        return facts, choose(facts, Request(), this_machine())
    except TinyEdgeError as error:
        if force:
            status(f"warning: {printable(error.problem, 300)}")
            return facts, None
        if isinstance(error, MemoryFitError):
            remedy = "take a smaller type (NAME:Q3_K_M, NAME:Q2_K) or a smaller model, or download it all the same with --force"
            raise MemoryFitError(f"nothing was downloaded: {error.problem}", remedy) from error
        raise


def _what(wanted: Wanted, facts: ModelFacts, missing: int) -> str:
    known = wanted.name.known
    licence = f", licence {known.licence}" if known else ""
    rest = "" if missing == wanted.file.bytes else f", {format_bytes(missing)} of it still missing"
    return printable(
        f"{wanted.file.repo}: {wanted.file.name}, {format_count(facts.parameters)} parameters, {facts.file_type}, "
        f"{format_bytes(wanted.file.bytes)}{rest}{licence}",
        400,
    )


def _received(fetched: Fetched, seconds: float) -> str:
    if not fetched.received:
        return "checked what was there: it is whole"
    earlier = f", {format_bytes(fetched.resumed)} were there from an earlier attempt" if fetched.resumed else ""
    return f"{format_bytes(fetched.received)} in {format_seconds(seconds)}{earlier}, checksum right"


def _pull_object(wanted: Wanted, facts: ModelFacts, plan: LoadPlan | None, fetched: Fetched, seconds: float) -> dict[str, Any]:
    known = wanted.name.known
    return {
        "path": str(fetched.path),
        "repo": wanted.file.repo,
        "file": wanted.file.name,
        "commit": wanted.file.commit,
        "checksum": wanted.file.checksum,
        "licence": known.licence if known else None,
        "type": facts.file_type,
        "parameters": facts.parameters,
        "bytes": fetched.bytes,
        "received_bytes": fetched.received,
        "resumed_bytes": fetched.resumed,
        "seconds": round(seconds, 3),
        "note": wanted.note,
        "fits": plan is not None,
        "plan": plan.reason if plan else None,
    }


def _model_object(model: CachedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "cache": "hub" if model.repo else "tinyedge",
        "repo": model.repo or None,
        "file": model.file,
        "type": model.type,
        "bytes": model.bytes,
        "last_used": datetime.fromtimestamp(model.used, timezone.utc).isoformat(timespec="seconds"),
        "path": str(model.path),
    }


def _print_table(models: list[CachedModel], unfinished: list[Partial]) -> None:
    rows = [(model.name, model.type or "", format_bytes(model.bytes), _age(model.used)) for model in models]
    rows += [(part.repo, "unfinished", format_bytes(part.bytes), "") for part in unfinished]
    width = max(len(printable(name, 100)) for name, *_ in rows)
    print_line(f"{'model':<{width}}  {'type':<10}  {'size':>8}  last used")
    for name, kind, size, used in rows:
        print_line(f"{printable(name, 100):<{width}}  {kind:<10}  {size:>8}  {used}".rstrip())
    total = format_bytes(_total_bytes(models, unfinished))
    print_line(f"{len(models)} model{'s' if len(models) != 1 else ''}, {total}")


def _total_bytes(models: list[CachedModel], unfinished: list[Partial]) -> int:
    return sum(model.bytes for model in models) + sum(part.bytes for part in unfinished)


def _age(used: float) -> str:
    """How long ago, in the coarsest unit that says something."""
    seconds = max(0.0, time() - used)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count = int(seconds // length)
        if count:
            return f"{count} {unit}{'s' if count != 1 else ''} ago"
    return "just now"
