"""What a name means on the hub, and the header of that file, before anything is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tinyedge.errors import DiskSpaceError, GGUFError, ModelNotFoundError
from tinyedge.gguf_file import GGUFFile, read_gguf
from tinyedge.hub.cache import hub_folder
from tinyedge.hub.download import Place, is_there, place_of
from tinyedge.hub.header import read_remote_header
from tinyedge.hub.names import ModelName, choose_file, nearest_names, parse_name, type_in_name
from tinyedge.hub.session import Hub, RepoFile


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file on the hub that a name means, and where it goes. `note` says where it is not what one would expect."""

    name: ModelName
    file: RepoFile
    place: Place
    note: str | None

    @property
    def is_there(self) -> bool:
        """Whether the whole file is in the cache."""
        return is_there(self.place, self.file)


def named(text: str) -> ModelName:
    """The model of the hub that `text` names. Raises ModelNotFoundError with names that look like it."""
    name = parse_name(text)
    if name is None:
        raise ModelNotFoundError(
            f"{text[:100]!r} is neither ORG/NAME, with :TYPE or :FILE, nor a short name",
            f"try {', '.join(nearest_names(text))}",
        )
    return name


def find_on_hub(hub: Hub, name: ModelName, revision: str = "main", folder: Path | None = None) -> Wanted:
    """What `name` means on the hub now; `folder` is the cache to put it into, by default the shared one. Raises HubError."""
    folder = folder or hub_folder()
    if folder is None:
        raise DiskSpaceError("there is no home folder to keep models in", "set HF_HOME to a folder you can write")
    repository = hub.repository(name, revision)
    file = choose_file(name, repository.files, lambda file: file.name)
    return Wanted(name, file, place_of(folder, file), _note(name, file))


def read_header_of(hub: Hub, wanted: Wanted) -> GGUFFile:
    """The header of the file, from the hub unless the whole file is in the cache. Raises HubError and GGUFError."""
    if wanted.is_there:
        return read_gguf(wanted.place.content)
    try:
        return read_remote_header(hub, wanted.file)
    except GGUFError as error:
        remedy = f"nothing was downloaded; take another file or another repository than {wanted.name.repo}"
        raise GGUFError(error.problem, remedy) from error


def _note(name: ModelName, file: RepoFile) -> str | None:
    kind = type_in_name(file.name)
    if name.type or name.file or kind in (name.default_type, None):
        return None
    return f"{name.repo} has no {name.default_type}: this is its {kind}"
