"""The models on this machine: the hub's shared cache, and tinyedge's own cache of quantized checkpoints.

The hub's cache is read and cleaned by its documented layout, without huggingface_hub, which a board need not have:

    models--ORG--NAME/blobs/CHECKSUM                 the content
    models--ORG--NAME/snapshots/COMMIT/FILE          a link to it (the content itself where there are no links)
    models--ORG--NAME/refs/main                      the commit that was last called main
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinyedge.errors import HubError, ModelNotFoundError
from tinyedge.hub.names import (
    ModelName,
    choose_file,
    close_names,
    is_model_file,
    known_models,
    parse_name,
    type_in_name,
)

PARTIAL_SUFFIX = ".tinyedge.incomplete"
_REPO_PREFIX = "models--"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedModel:
    """A GGUF file in a cache. `repo` is empty in tinyedge's own; `used` is in seconds since 1970."""

    repo: str
    file: str
    path: Path
    commit: str
    bytes: int
    used: float

    @property
    def type(self) -> str | None:
        """The quantization type as the file's name gives it."""
        return type_in_name(self.file)

    @property
    def name(self) -> str:
        """The shortest name under which `run` and `rm` find it."""
        if not self.repo:
            return str(self.path)
        row = next((row for row in known_models() if row.repo == self.repo), None)
        if row is not None and (self.file == row.file or (not row.file and self.type == row.type)):
            return row.name
        shown = row.name if row is not None else self.repo
        return f"{shown}:{self.type or self.file}"


@dataclass(frozen=True, slots=True)
class Partial:
    """The beginning of a file whose download was interrupted."""

    repo: str
    path: Path
    bytes: int


def hub_folder() -> Path | None:
    """The hub's cache as huggingface_hub finds it by HF_HUB_CACHE, HF_HOME and XDG_CACHE_HOME; None without a home folder."""
    environment = os.environ
    try:
        chosen = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE")
        if chosen:
            return _expanded(chosen)
        home = environment.get("HF_HOME")
        if home:
            return _expanded(home) / "hub"
        return _expanded(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface" / "hub"
    except RuntimeError:
        return None


def repo_folder(hub: Path, repo: str) -> Path:
    """The folder of a repository of models in the hub's cache."""
    return hub / (_REPO_PREFIX + repo.replace("/", "--"))


def hub_models(hub: Path | None) -> list[CachedModel]:
    """The GGUF models in the hub's cache, each file once, of the newest revision that is whole; by name."""
    found: dict[tuple[str, str], CachedModel] = {}
    for folder in _folders(hub):
        repo = folder.name[len(_REPO_PREFIX) :].replace("--", "/")
        main = _read_ref(folder / "refs" / "main")
        for snapshot in sorted(_snapshots(folder), key=lambda path: (path.name == main, _changed(path))):
            for path in snapshot.rglob("*"):
                file = path.relative_to(snapshot).as_posix()
                model = _model(path, repo, file, snapshot.name) if is_model_file(file) else None
                if model is not None:
                    found[repo, file] = model
    return [found[key] for key in sorted(found)]


def own_models(folder: Path | None) -> list[CachedModel]:
    """The quantized checkpoints in tinyedge's own cache, by name."""
    paths = sorted(folder.glob("*.gguf")) if folder is not None and folder.is_dir() else []
    return [model for path in paths if (model := _model(path, "", path.name, "")) is not None]


def partials(hub: Path | None) -> list[Partial]:
    """What interrupted downloads of `tinyedge pull` left to go on from."""
    return [
        Partial(folder.name[len(_REPO_PREFIX) :].replace("--", "/"), path, path.stat().st_size)
        for folder in _folders(hub)
        for path in sorted((folder / "blobs").glob(f"*{PARTIAL_SUFFIX}"))
    ]


def find(text: str, models: Sequence[CachedModel]) -> CachedModel | None:
    """The one of `models` that `text` names, None when none of that repository and type is there.

    A name without a type means the best one that is there. Raises HubError for a name that fits several files.
    """
    name = parse_name(text)
    if name is None:
        return None
    there = [model for model in models if model.repo.lower() == name.repo.lower()]
    if not there:
        return None
    if name.type is None and name.file is None and name.known is not None and len(there) == 1:
        return there[0]
    try:
        return choose_file(name, there, lambda model: model.file)
    except HubError:
        if _would_choose_among(name, there):
            raise
        return None


def find_one(text: str, models: Sequence[CachedModel]) -> CachedModel | None:
    """As `find`, but a name without a type means what `ls` calls so, or the only file there is.

    Raises HubError where it could mean several.
    """
    name = parse_name(text)
    if name is None or name.type or name.file not in (None, name.known and name.known.file):
        return find(text, models)
    there = [model for model in models if model.repo.lower() == name.repo.lower()]
    if len(there) < 2:
        return next(iter(there), None)
    called = [model for model in there if ":" not in model.name]
    if len(called) != 1 or text.lower() == name.repo.lower():
        raise HubError(f"{text} has {len(there)} files here", f"name one: {', '.join(model.name for model in there[:12])}")
    return called[0]


def resolve(text: str) -> Path:
    """The file on this machine that the hub name `text` means; the network is never asked.

    Raises ModelNotFoundError where there is none, or `text` is no such name.
    """
    model = find(text, hub_models(hub_folder()))
    if model is not None:
        return model.path
    name = parse_name(text)
    if name is None:
        near = close_names(text)
        raise ModelNotFoundError(f"{text} does not exist", f"did you mean {' or '.join(near)}?" if near else None)
    if name.known is None:
        raise ModelNotFoundError(
            f"{text} is neither a path nor a model that was pulled", f"if it is on the hub: tinyedge pull {text}"
        )
    raise ModelNotFoundError(f"{text} is not on this machine yet", f"fetch it with `tinyedge pull {text}`")


def remove(hub: Path, repo: str, files: Sequence[str]) -> int:
    """Takes the named files of a repository out of the hub's cache, in all revisions; the bytes that became free.

    Content that another file of the repository still links to stays. What is left of a repository without files goes too.
    """
    folder = repo_folder(hub, repo)
    blobs = folder / "blobs"
    freed = 0
    dropped: set[Path] = set()
    for snapshot in _snapshots(folder):
        for file in files:
            path = snapshot / file
            if path.is_symlink():
                dropped.add(_target(path))
            elif path.is_file():
                freed += path.stat().st_size
            else:
                continue
            path.unlink()
            _remove_empty(path.parent, snapshot.parent)
    used = {_target(path) for path in (folder / "snapshots").rglob("*") if path.is_symlink()}
    for blob in dropped - used:
        if blob.parent == blobs and (blob.is_file() or blob.is_symlink()):
            freed += blob.stat().st_size if blob.exists() else 0
            blob.unlink()
    _tidy(hub, folder)
    return freed


def remove_partials(hub: Path, repo: str) -> int:
    """Deletes what interrupted downloads of a repository left; the bytes that became free."""
    freed = 0
    for partial in [partial for partial in partials(hub) if partial.repo == repo]:
        freed += partial.bytes
        partial.path.unlink()
    _tidy(hub, repo_folder(hub, repo))
    return freed


def _tidy(hub: Path, folder: Path) -> None:
    """Removes references to revisions that are gone, and the repository's folder once nothing is in it but its skeleton."""
    for ref in [path for path in (folder / "refs").rglob("*") if path.is_file()]:
        if not (folder / "snapshots" / (_read_ref(ref) or "-")).is_dir():
            ref.unlink()
    if any(_listed(folder / "snapshots")) or any((folder / "blobs").glob("*")):
        return
    for leftover in (folder, hub / ".locks" / folder.name):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)


def _remove_empty(folder: Path, above: Path) -> None:
    """Removes `folder` and its parents below `above` as far as they are empty."""
    with contextlib.suppress(OSError):  # not empty
        while folder != above:
            folder.rmdir()
            folder = folder.parent


def _target(link: Path) -> Path:
    """Where a link of a snapshot points, one step and not further: a blob may itself be a link into a shared store."""
    return Path(os.path.normpath(link.parent / link.readlink()))


def _would_choose_among(name: ModelName, there: Sequence[CachedModel]) -> bool:
    """Whether several files fit the name, rather than none."""
    fits = [
        model for model in there if name.type in (None, model.type) and (name.file is None or model.file.endswith(name.file))
    ]
    return len(fits) > 1


def _model(path: Path, repo: str, file: str, commit: str) -> CachedModel | None:
    """The model at `path`, None where there is no whole file."""
    try:
        facts = path.stat()
    except OSError:  # a link whose content is gone
        return None
    if not path.is_file():
        return None
    return CachedModel(
        repo=repo, file=file, path=path, commit=commit, bytes=facts.st_size, used=max(facts.st_atime, facts.st_mtime)
    )


def _folders(hub: Path | None) -> list[Path]:
    return [] if hub is None else [path for path in _listed(hub) if path.name.startswith(_REPO_PREFIX)]


def _snapshots(folder: Path) -> list[Path]:
    """The revisions of a repository; a link to a folder elsewhere is none, least of all for `remove`."""
    return [path for path in _listed(folder / "snapshots") if not path.is_symlink()]


def _listed(folder: Path) -> list[Path]:
    """The folders in a folder, by name; none where it is not there or may not be read."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return []


def _read_ref(path: Path) -> str | None:
    try:
        text = path.read_bytes()[:64].decode("ascii", "replace").strip()
    except OSError:
        return None
    return text if _COMMIT.fullmatch(text) else None


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _expanded(path: str) -> Path:
    return Path(os.path.expandvars(path)).expanduser()
