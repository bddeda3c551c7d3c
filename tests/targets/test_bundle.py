"""A bundle installs without a network or is refused with a sentence; what was installed before survives whatever happens.

Most tests install a small package in place of tinyedge; the one that takes the real thing needs the package index once.
"""

from __future__ import annotations

import ensurepip
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from tinyedge.errors import BoardError, BuildError, DiskSpaceError, GGUFError, ModelNotFoundError, OutputError, WheelError
from tinyedge_targets.board_python import board_python
from tinyedge_targets.boards import find_board
from tinyedge_targets.bundle import Bundle, install_script, make_bundle
from tinyedge_targets.wheel_writing import write_wheel

NATIVE = find_board("native")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
BASE = getattr(sys, "_base_executable", sys.executable)
PIP = next((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"), None)
SHELLS = [found for name in ("dash", "bash", "busybox") if (found := shutil.which(name))]

WORKS = "import sys\nprint('tinyedge', {version!r})\n"
BROKEN = "raise SystemExit('cannot start')\n"
KILLED = "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n"
SLOW = "import pathlib, time\npathlib.Path({mark!r}).touch()\ntime.sleep(60)\n"

installs = pytest.mark.skipif(PIP is None, reason="this Python has no pip wheel of its own")


class Board:
    """A home folder, and the bundles that come to it."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "ho me"
        self.home.mkdir()
        self.command = self.home / ".local/bin/tinyedge"
        self.share = self.home / ".local/share/tinyedge"

    def unpack(self, version: str, main: str, **facts: str) -> Path:
        """A bundle's folder with pip and a `tinyedge` whose __main__ is `main`."""
        folder = self.home.parent / f"bun dle's {version}"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "wheels").mkdir(parents=True)
        info = f"tinyedge_llm-{version}.dist-info"
        files = {
            "tinyedge/__init__.py": b"",
            "tinyedge/__main__.py": main.format(version=version, mark=str(folder / "started")).encode(),
            "tinyedge/entry.py": b"def main():\n    import tinyedge.__main__\n",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tinyedge-llm\nVersion: {version}\n".encode(),
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/entry_points.txt": b"[console_scripts]\ntinyedge = tinyedge.entry:main\n",
        }
        write_wheel(folder / f"wheels/tinyedge_llm-{version}-py3-none-any.whl", info, files)
        if PIP is not None:
            shutil.copy(PIP, folder / "wheels")
        target = board_python(NATIVE, PYTHON)
        stated = {
            "BOARD": "rpi4",
            "NEED_MACHINE": target.machine,
            "NEED_PYTHON": PYTHON,
            "NEED_GLIBC": target.glibc,
            "NEED_KIB": "1000",
            "MODEL": "",
        }
        (folder / "install.sh").write_bytes(install_script(stated | facts))
        self.sign(folder)
        return folder

    def sign(self, folder: Path) -> None:
        """Writes SHA256SUMS for what is in the folder."""
        paths = [folder / "install.sh", *sorted((folder / "wheels").iterdir())]
        lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in paths]
        (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")

    def environment(self, **more: str) -> dict[str, str]:
        return {"HOME": str(self.home), "PATH": "/usr/bin:/bin", "PYTHON": BASE} | more

    def install(self, folder: Path, *arguments: str, shell: str = "/bin/sh", **more: str) -> subprocess.CompletedProcess[str]:
        name = [shell, "sh"] if shell.endswith("busybox") else [shell]
        command = [*name, str(folder / "install.sh"), *arguments]
        return subprocess.run(command, env=self.environment(**more), capture_output=True, text=True, cwd=self.home, timeout=300)

    def says(self) -> str:
        """What the installed command prints."""
        done = subprocess.run([self.command, "--version"], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
        return done.stdout.strip() or f"exit code {done.returncode}: {done.stderr}"

    def environments(self) -> list[str]:
        return [path.name for path in self.share.glob("venv-*")]


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a script that gave up."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and "; " in done.stderr
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


@installs
@pytest.mark.parametrize("shell", SHELLS)
def test_it_installs_with_any_shell_and_blanks_in_every_path(board: Board, shell: str) -> None:
    folder = board.unpack("1.0", WORKS)
    done = board.install(folder, shell=shell)
    assert done.returncode == 0, done.stderr
    assert board.says() == "tinyedge 1.0"
    assert f"'{board.command}' run demo -p \"Once upon a time\"" in done.stdout
    assert f"PATH='{board.command.parent}':$PATH" in done.stdout


@installs
def test_the_printed_command_names_the_model_and_can_be_pasted(board: Board) -> None:
    folder = board.unpack("1.0", "import sys\nprint(sys.argv[1:])\n", MODEL="m.gguf")
    done = board.install(folder, PATH=f"{board.command.parent}:/usr/bin:/bin")
    line = next(line for line in done.stdout.splitlines() if " run " in line)
    environment = board.environment(PATH=f"{board.command.parent}:/usr/bin:/bin")
    told = subprocess.run(["/bin/sh", "-c", line], env=environment, capture_output=True, text=True)
    assert told.stdout.strip() == str(["run", str(folder / "m.gguf"), "-p", "Once upon a time"])
    assert "profile" not in done.stdout


@installs
def test_again_changes_nothing_and_a_newer_one_replaces(board: Board) -> None:
    folder = board.unpack("1.0", WORKS)
    board.install(folder)
    before = board.environments()
    again = board.install(folder)
    assert again.returncode == 0
    assert "installed already" in again.stdout
    assert board.environments() == before
    assert board.install(board.unpack("2.0", WORKS)).returncode == 0
    assert board.says() == "tinyedge 2.0"
    assert len(board.environments()) == 1
    assert board.install(folder).returncode == 0
    assert board.says() == "tinyedge 1.0"


@installs
def test_a_damaged_installation_is_repaired(board: Board) -> None:
    folder = board.unpack("1.0", WORKS)
    board.install(folder)
    next(board.share.glob("venv/lib/python*/site-packages/tinyedge/__main__.py")).unlink()
    assert "exit code" in board.says()
    assert board.install(folder).returncode == 0
    assert board.says() == "tinyedge 1.0"
    assert len(board.environments()) == 1


@installs
@pytest.mark.parametrize(
    ("main", "problem"), [(BROKEN, "does not start (cannot start, exit code 1)"), (KILLED, "built for a newer processor")]
)
def test_a_version_that_does_not_start_leaves_the_old_one(board: Board, main: str, problem: str) -> None:
    board.install(board.unpack("1.0", WORKS))
    assert problem in refused(board.install(board.unpack("2.0", main)))
    assert board.says() == "tinyedge 1.0"
    assert len(board.environments()) == 1


@installs
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_installation_leaves_the_old_one(board: Board, number: signal.Signals) -> None:
    board.install(board.unpack("1.0", WORKS))
    folder = board.unpack("2.0", SLOW)
    process = subprocess.Popen(
        ["/bin/sh", str(folder / "install.sh")],
        env=board.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (folder / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, number)
    assert process.wait(30) != 0
    assert board.says() == "tinyedge 1.0"
    assert len(board.environments()) == (2 if number == signal.SIGKILL else 1)
    assert board.install(board.unpack("3.0", WORKS)).returncode == 0
    assert board.says() == "tinyedge 3.0"
    assert len(board.environments()) == 1


@installs
def test_nothing_of_the_users_python_settings_gets_in(board: Board, tmp_path: Path) -> None:
    poison = tmp_path / "poison"
    poison.mkdir()
    for name in ("venv", "tinyedge", "sitecustomize", "usercustomize"):
        (poison / f"{name}.py").write_text("raise SystemExit('poisoned')\n", encoding="utf-8")
    settings = tmp_path / "pip.conf"
    settings.write_text("[install]\nuser = true\nno-binary = :all:\nrequire-hashes = true\n", encoding="utf-8")
    folder = board.unpack("1.0", WORKS)
    more = {"PYTHONPATH": str(poison), "PYTHONHOME": "/nowhere", "PIP_CONFIG_FILE": str(settings), "PIP_REQUIRE_HASHES": "1"}
    done = board.install(folder, **more, CDPATH="/:/usr")
    assert done.returncode == 0, done.stderr
    assert board.says() == "tinyedge 1.0"


@installs
def test_another_prefix_takes_everything(board: Board) -> None:
    folder = board.unpack("1.0", WORKS)
    assert board.install(folder, "--prefix", "some where").returncode == 0
    assert (board.home / "some where/bin/tinyedge").is_symlink()
    assert [path.name for path in board.home.iterdir()] == ["some where"]


def test_a_damaged_or_missing_file_is_named_before_anything_is_written(board: Board) -> None:
    folder = board.unpack("1.0", WORKS)
    wheel = next(folder.glob("wheels/tinyedge*"))
    content = wheel.read_bytes()
    wheel.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert f"wheels/{wheel.name} is damaged; copy the archive again" in refused(board.install(folder))
    wheel.unlink()
    assert f"wheels/{wheel.name} is missing; copy the archive again" in refused(board.install(folder))
    (folder / "SHA256SUMS").write_bytes(b"")
    assert "is damaged; copy" in refused(board.install(folder))
    (folder / "SHA256SUMS").unlink()
    assert "has no SHA256SUMS" in refused(board.install(folder))
    assert list(board.home.iterdir()) == []


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        ({"NEED_PYTHON": "3.99"}, f"Python 3.99 is needed and {BASE} is Python {PYTHON}; name another with PYTHON=FILE"),
        ({"NEED_MACHINE": "riscv64"}, "this bundle is for riscv64 (rpi4) and this system is"),
        ({"NEED_GLIBC": "2.999"}, "the wheels need glibc 2.999 and this system has"),
        ({"NEED_KIB": "999999999999"}, "MiB free; free some space or choose another disk"),
    ],
)
def test_a_system_that_does_not_suit_is_told_why(board: Board, facts: dict[str, str], problem: str) -> None:
    folder = board.unpack("1.0", WORKS, **facts)
    assert problem in refused(board.install(folder))
    assert not board.environments()


def test_glibc_is_compared_by_number(board: Board) -> None:
    folder = board.unpack("1.0", WORKS, NEED_GLIBC="2.5", NEED_KIB="999999999999")
    assert "MiB free" in refused(board.install(folder))


def test_a_python_that_is_not_there_is_told(board: Board, tmp_path: Path) -> None:
    folder = board.unpack("1.0", WORKS)
    problem = f"Python {PYTHON} is needed and /no/python does not start; install it"
    assert problem in refused(board.install(folder, PYTHON="/no/python"))
    script = tmp_path / "py thon"
    script.write_text("#!/bin/sh\nexit 3\n", encoding="utf-8")
    script.chmod(0o755)
    assert f"{script} does not start" in refused(board.install(folder, PYTHON=str(script)))


def test_a_place_that_cannot_be_written_is_told(board: Board) -> None:
    folder = board.unpack("1.0", WORKS)
    (board.home / "file").write_bytes(b"")
    assert "file/x cannot be written; choose another" in refused(board.install(folder, "--prefix", "file/x"))
    assert "HOME is not set; say where" in refused(board.install(folder, HOME=""))


def test_a_command_of_someone_else_is_left_alone(board: Board) -> None:
    folder = board.unpack("1.0", WORKS)
    board.command.parent.mkdir(parents=True)
    board.command.write_text("mine", encoding="utf-8")
    assert "is there and not of this script's making" in refused(board.install(folder))
    board.command.unlink()
    board.command.symlink_to("/bin/true")
    assert "is there and not of this script's making" in refused(board.install(folder))
    assert board.command.readlink() == Path("/bin/true")


@pytest.mark.parametrize("arguments", [["--help"], ["--prefix"], ["there"]])
def test_wrong_usage_shows_the_right_one(board: Board, arguments: list[str]) -> None:
    done = board.install(board.unpack("1.0", WORKS), *arguments)
    assert done.returncode == 2
    assert "sh install.sh --prefix DIR" in done.stderr


# The real thing.


def quiet(stage: str, done: int, total: int) -> None:
    """Progress for nobody."""


@pytest.fixture(scope="module")
def llama_wheel() -> Path:
    """llama-cpp-python as setup.sh compiled it for this machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "tinyedge/wheels"
    found = sorted(cache.glob("*/llama_cpp_python-*.whl"))
    if not found:
        pytest.skip("setup.sh has not compiled a wheel of llama-cpp-python here")
    return found[-1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo as a GGUF file, under a name that needs quoting."""
    from tinyedge_quantize.convert import convert

    demo = Path(__file__).resolve().parent.parent.parent / "edge/tinyedge/demo"
    path = tmp_path_factory.mktemp("model") / "the 'demo'.gguf"
    convert(demo, path, "Q4_0")
    return path


@pytest.fixture(scope="module")
def bundle(llama_wheel: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    try:
        return make_bundle(NATIVE, PYTHON, llama_wheel, model, tmp_path_factory.mktemp("bundle"), progress=quiet)
    except BuildError as error:
        if "no package index answered" in error.problem or "hatchling" in error.problem:
            pytest.skip("no network")
        raise


def test_a_bundle_is_one_folder_whose_sums_are_right(bundle: Bundle) -> None:
    assert bundle.path.name == f"tinyedge-native-py{PYTHON}.tar"
    with tarfile.open(bundle.path) as archive:
        members = {member.name: member for member in archive.getmembers()}
        contents = {name: archive.extractfile(member).read() for name, member in members.items()}  # type: ignore[union-attr]
    assert [(f"{bundle.folder}/{name}", size) for name, size in bundle.files] == [(n, len(c)) for n, c in contents.items()]
    assert all(member.isreg() and member.uid == member.gid == 0 for member in members.values())
    assert f"{bundle.folder}/the-demo.gguf" in contents
    sums = dict(line.split("  ")[::-1] for line in contents.pop(f"{bundle.folder}/SHA256SUMS").decode().splitlines())
    assert sums == {name.partition("/")[2]: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    readme = contents[f"{bundle.folder}/README.txt"].decode().splitlines()
    assert len(readme) == 3 and "the-demo.gguf" in readme[0]


def test_the_same_parts_make_the_same_archive(bundle: Bundle, llama_wheel: Path, model: Path, tmp_path: Path) -> None:
    again = make_bundle(NATIVE, PYTHON, llama_wheel, model, tmp_path, progress=quiet)
    assert again.files == bundle.files
    assert again.path.read_bytes() == bundle.path.read_bytes()
    assert list(tmp_path.iterdir()) == [again.path]


def test_the_real_bundle_installs_and_runs_without_a_network(bundle: Bundle, board: Board) -> None:
    with tarfile.open(bundle.path) as archive:
        archive.extractall(board.home, filter="data")
    unshare = ["unshare", "-rn"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        unshare = []
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "PIP_INDEX_URL"), "http://127.0.0.1:1")
    environment = board.environment(**nowhere)
    script = board.home / bundle.folder / "install.sh"
    done = subprocess.run([*unshare, "sh", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "llama-cpp-python" in done.stdout
    used = sum(path.lstat().st_blocks * 512 for path in board.share.rglob("*"))
    assert used <= bundle.installed_bytes
    line = next(line for line in done.stdout.splitlines() if " run " in line)
    told = subprocess.run([*unshare, "sh", "-c", f"{line} -n 4"], env=environment, capture_output=True, text=True)
    assert (told.returncode, bool(told.stdout.strip())) == (0, True), told.stderr
    demo = [*unshare, board.command, "run", "demo", "-n", "4", "-p", "Once"]
    told = subprocess.run(demo, env=environment, capture_output=True, text=True)
    assert (told.returncode, bool(told.stdout.strip())) == (0, True), told.stderr


@pytest.fixture(scope="module")
def small_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of llama-cpp-python with nothing in it, in order otherwise."""
    info = "llama_cpp_python-0.3.36.dist-info"
    files = {
        "llama_cpp/__init__.py": b"",
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 0.3.36\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: py3-none-linux_riscv64\n",
    }
    return write_wheel(tmp_path_factory.mktemp("wheel") / "llama_cpp_python-0.3.36-py3-none-linux_riscv64.whl", info, files)


def test_bad_input_is_refused_before_anything_is_fetched(small_wheel: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    text = tmp_path / "model.gguf"
    text.write_bytes(b"not a model")
    vast = tmp_path / "vast.gguf"
    vast.write_bytes(b"GGUF")
    os.truncate(vast, min(shutil.disk_usage(tmp_path).free + (1 << 30), 1 << 43))
    damaged = tmp_path / small_wheel.name
    damaged.write_bytes(small_wheel.read_bytes()[:-30])

    def attempt(error: type[Exception], wheel: Path, given: Path | None, folder: Path = out) -> str:
        with pytest.raises(error) as caught:
            make_bundle(NATIVE, PYTHON, wheel, given, folder, progress=quiet)
        return str(caught.value)

    assert "not a GGUF file" in attempt(GGUFError, small_wheel, text)
    assert "cannot be read" in attempt(ModelNotFoundError, small_wheel, tmp_path / "none.gguf")
    assert "cannot be read" in attempt(ModelNotFoundError, small_wheel, tmp_path)
    assert "free" in attempt(DiskSpaceError, small_wheel, vast)
    assert "is not a folder" in attempt(OutputError, small_wheel, None, tmp_path / "none")
    assert "zip" in attempt(WheelError, damaged, None)
    assert "does not fit" in attempt(BoardError, small_wheel, None)
    assert list(out.iterdir()) == []


@pytest.mark.usefixtures("bundle")
def test_an_interrupted_bundle_leaves_nothing(llama_wheel: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, _total: int) -> None:
        if stage.startswith("bundle") and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_bundle(NATIVE, PYTHON, llama_wheel, None, tmp_path, progress=interrupt)
    assert list(tmp_path.iterdir()) == []
