"""Debian's packages for another processor, unpacked into a folder: a Python to run under emulation, without root or chroot.

apt-get works on a state of its own here: it neither reads the machine's list of installed packages nor writes anything outside
the cache, so it runs as an ordinary user. It checks the archive's signatures as ever. Nothing in a package is executed: no
maintainer script runs, its files are only written out.
"""

from __future__ import annotations

import errno
import os
import posixpath
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tinyedge.errors import DiskSpaceError, NotEmulatedError
from tinyedge_targets.cache import cache_folder, content_key, entry_in_progress

MIRROR_VARIABLE = "TINYEDGE_DEBIAN_MIRROR"
_MIRROR = "http://deb.debian.org/debian"  # plain HTTP as in Debian's own images: what counts is the archive's signature

# The Debian release that has each Python.
SUITES = {"3.11": "bookworm", "3.13": "trixie"}

# What tinyedge and llama-cpp-python import, venv with its pip, and the C++ library that PyPI's numpy expects of every system.
PACKAGES = (
    "libstdc++6",
    "python3",
    "python3-venv",
    "python3-diskcache",
    "python3-jinja2",
    "python3-numpy",
    "python3-psutil",
    "python3-tqdm",
    "python3-typing-extensions",
    "python3-yaml",
)
_FORMAT = 2  # raise it when a root is made differently: older ones are then left alone
_FREE_BYTES = 400 << 20  # a root takes 75 MB, its packages and package lists 50 MB while it is made

# What no import needs: two thirds of the bytes. python-wheels are those that venv installs pip from.
_LEFT_OUT = re.compile(
    r"(usr/share/(?!python-wheels(/|$)).+|usr/lib/[^/]+/(gconv|perl)(/|-base/).*|usr/include/.+|(.*/)?tests/.*"
    r"|etc/.*|var/.*|usr/s?bin/(?!python3).+|usr/lib/ssl/.*|usr/lib/python3[.\d]*/(test|idlelib|lib2to3|pydoc_data)/.*)"
)
_MERGED = ("bin", "lib", "lib64", "sbin")  # directories that newer releases keep in /usr

# Settings of the machine's own apt that say how to reach the network; the rest (hooks, other files to fetch) does not apply.
_CARRIED = re.compile(r"Acquire::(http|https|ftp|socks|Check-|Retries|ForceIPv|Proxy|Queue|By-Hash)[^ ]* \"[^\"\n]*\";")
_KEYRINGS = ("debian-archive-keyring.gpg", "debian-archive-keyring.pgp")
_APT_SECONDS = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Where packages come from: the `mirror` and `suite` for one of Debian's architectures, signed with a key of `keyring`.

    Without a suite they come from what the machine's own apt uses, for the machine itself.
    """

    architecture: str = ""
    suite: str = ""
    mirror: str = ""
    keyring: Path | None = None


def python_root(architecture: str, python: str) -> Path:
    """The folder of a Debian system of `architecture` (arm64, armhf, amd64) that holds little more than `python` ("3.11").

    Made once and kept. Raises NotEmulatedError where apt-get is missing or fails, DiskSpaceError when the disk is full.
    """
    suite = SUITES[python]
    folder = cache_folder("emulation")
    facts = {"format": _FORMAT, "architecture": architecture, "suite": suite, "packages": PACKAGES}
    key = f"{suite}-{architecture}-{content_key(facts)}"
    with entry_in_progress(folder, key) as new:
        if new is not None:
            release = Release(architecture=architecture, suite=suite, mirror=_mirror(), keyring=_keyring())
            _make_root(new, release, folder / key)
    return folder / key


def host_program(package: str, program: str) -> Path | None:
    """The file `program` of a package of this machine's own distribution, unpacked into the cache; None if it has none.

    The package may be a transitional one: the packages it depends on are looked through too.
    """
    stem = re.escape(program.removesuffix("-static").partition(".")[0])
    others = re.compile(rf"(?!(.*/)?{stem}[^/]*\Z).*")  # qemu's package is 370 MB, a program of it 12
    folder = cache_folder("emulation")
    key = f"host-{content_key({'format': _FORMAT, 'package': package, 'program': program})}"
    with entry_in_progress(folder, key) as new:
        if new is not None:
            with _full_disk_told(new), tempfile.TemporaryDirectory(dir=new) as temporary:
                for deb in fetch([package], Release(), Path(temporary)):
                    if deb.name.startswith(package.removesuffix("-static")):
                        unpack(deb, new, others)
    return next((path for path in (folder / key).glob(f"usr/*/{program}")), None) or next(
        (path for path in (folder / key).glob(f"usr/share/keyrings/{program}")), None
    )


def fetch(packages: Sequence[str], release: Release, folder: Path) -> list[Path]:
    """The .deb files of `packages` and of all they depend on, downloaded into `folder`, their signatures checked.

    Raises NotEmulatedError with apt-get's own words when that fails.
    """
    missing = [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]
    if missing:
        raise NotEmulatedError(
            f"{' and '.join(missing)} are needed to make a Python for another processor",
            "verify the wheel on Debian or Ubuntu, or in a container of one",
        )
    environment = os.environ | {"APT_CONFIG": str(_apt_configuration(release, folder)), "LC_ALL": "C.UTF-8"}
    remedy = f"check the network, or name a Debian mirror with {MIRROR_VARIABLE}" if release.suite else "check the network"
    # This machine's own lists need not all be had, as long as the package is: what was wrong with them is told if it is not.
    told = _apt(["update"], environment, (), remedy if release.suite else None)
    _apt(["install", "--yes", "--download-only", "--no-install-recommends", *packages], environment, told, remedy)
    return sorted((folder / "archives").glob("*.deb"))


def unpack(deb: Path, root: Path, left_out: re.Pattern[str] = _LEFT_OUT) -> None:
    """Writes the files of a package under `root`, those whose path matches `left_out` excepted.

    /bin, /lib and /sbin go into /usr, and absolute links become relative ones: both point inside `root` then.
    """
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as archive,
    ):
        for member in archive:
            inside = _inside(member.name)
            if inside is None or left_out.fullmatch(inside):
                continue
            _write_member(archive, member, root, inside)


def _inside(name: str) -> str | None:
    """The path of a package's file relative to the root, None for the root itself or for one that would leave it."""
    path = PurePosixPath(posixpath.normpath("/" + name.lstrip("/"))).relative_to("/")
    if not path.parts:
        return None
    return str(PurePosixPath("usr", path) if path.parts[0] in _MERGED else path)


def _write_member(archive: tarfile.TarFile, member: tarfile.TarInfo, root: Path, inside: str) -> None:
    target = root / inside
    target.parent.mkdir(parents=True, exist_ok=True)
    if member.isdir():
        target.mkdir(exist_ok=True)
    elif member.issym():
        link = member.linkname
        if link.startswith("/"):
            link = posixpath.relpath(_inside(link) or ".", posixpath.dirname(inside))
        target.unlink(missing_ok=True)
        target.symlink_to(link)
    elif member.islnk():
        target.unlink(missing_ok=True)
        shutil.copy2(root / (_inside(member.linkname) or "."), target)
    elif member.isfile() and (source := archive.extractfile(member)) is not None:
        target.unlink(missing_ok=True)
        with target.open("wb") as file:
            shutil.copyfileobj(source, file)
        target.chmod(0o755 if member.mode & 0o111 else 0o644)


class _full_disk_told:  # noqa: N801 - reads as the function that it stands for
    """Turns the system's ENOSPC within the block into DiskSpaceError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if shutil.disk_usage(folder).free < _FREE_BYTES:
            raise self._error()

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise self._error() from error

    def _error(self) -> DiskSpaceError:
        return DiskSpaceError(
            f"a Python for another processor needs {_FREE_BYTES >> 20} MB of disk under {self._folder.parent}",
            "free some space or name another disk with XDG_CACHE_HOME",
        )


def _make_root(new: Path, release: Release, final: Path) -> None:
    """Fills `new`, which is to be renamed to `final`."""
    with _full_disk_told(new):
        for name in _MERGED:
            (new / "usr" / name).mkdir(parents=True, exist_ok=True)
            (new / name).symlink_to(f"usr/{name}")
        with tempfile.TemporaryDirectory(dir=new) as temporary:
            for deb in fetch(PACKAGES, release, Path(temporary)):
                unpack(deb, new)
        # What the maintainer scripts of libblas3 and liblapack3 do: the library that programs ask for.
        for library in [*new.glob("usr/lib/*/blas/lib*.so.3"), *new.glob("usr/lib/*/lapack/lib*.so.3")]:
            link = library.parent.parent / library.name
            if not link.exists():
                link.symlink_to(f"{library.parent.name}/{library.name}")
        # qemu looks under the root for the path of a file that is opened, but not when its extended attributes are listed,
        # as ensurepip does when it copies pip's wheel.
        for data in new.glob("usr/lib/python3*/_sysconfigdata*.py"):
            text = data.read_text(encoding="utf-8")
            data.write_text(
                text.replace("'/usr/share/python-wheels/'", repr(f"{final}/usr/share/python-wheels/")), encoding="utf-8"
            )


def _mirror() -> str:
    mirror = os.environ.get(MIRROR_VARIABLE) or _MIRROR
    if not re.fullmatch(r"(https?|file|copy|ftp):/\S+", mirror):
        raise NotEmulatedError(f"{MIRROR_VARIABLE}={mirror} is not the address of a Debian mirror", f"give one like {_MIRROR}")
    return mirror


def _keyring() -> Path:
    """Debian's own keys: of this machine, or as its distribution packages them."""
    for name in _KEYRINGS:
        path = Path("/usr/share/keyrings", name)
        if path.is_file():
            return path
    for name in _KEYRINGS:
        found = host_program("debian-archive-keyring", name)
        if found is not None:
            return found
    raise NotEmulatedError(
        "Debian's archive keys are not here, so its packages cannot be trusted", "apt install debian-archive-keyring"
    )


def _apt_configuration(release: Release, folder: Path) -> Path:
    """Writes the settings that make apt-get work within `folder` alone; the path of their file."""
    for name in ("state/lists/partial", "archives/partial", "empty"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    empty = folder / "empty"
    settings = {
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder,
        "Dir::Cache::archives": folder / "archives",
        "Dir::Log": folder,
        "Dir::Etc::parts": empty,
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": empty,
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "APT::Sandbox::User": "root",  # for root: the user _apt cannot write here
        "APT::Install-Recommends": "false",
        "Debug::NoLocking": "true",
    }
    if release.suite:
        sources = folder / "sources.list"
        sources.write_text(f"deb [signed-by={release.keyring}] {release.mirror} {release.suite} main\n", encoding="utf-8")
        settings |= {
            "Dir::Etc::sourcelist": sources,
            "Dir::Etc::sourceparts": empty,
            "Dir::Etc::trusted": "/dev/null",
            "Dir::Etc::trustedparts": empty,
            "APT::Architecture": release.architecture,
            "APT::Architectures": release.architecture,
        }
    lines = [f'{name} "{value}";' for name, value in settings.items()]
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, encoding="utf-8", errors="replace", check=False)
    lines += [line for line in dump.stdout.splitlines() if _CARRIED.fullmatch(line)]
    path = folder / "apt.conf"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _apt(arguments: Sequence[str], environment: dict[str, str], told: Sequence[str], remedy: str | None) -> tuple[str, ...]:
    """What apt-get warned of. With a `remedy`, raises NotEmulatedError when it fails, in its words and those `told` before."""
    try:
        done = subprocess.run(
            ["apt-get", "--quiet", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=_APT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NotEmulatedError(f"apt-get {arguments[0]} did not end in {_APT_SECONDS} s", "check the network") from error
    said = [line.strip() for line in done.stdout.splitlines() if line.startswith(("E:", "W:", "Err:"))]
    if done.returncode and remedy is not None:
        words = " ".join(dict.fromkeys([*told, *said])) or done.stdout.strip()[-400:]
        raise NotEmulatedError(f"the packages for emulation could not be fetched: {words[:400]}", remedy)
    return tuple(said)
