"""llama-bench and other programs beside us: the real ones where they are, recorded output, and programs that misbehave.

TINYEDGE_LLAMA_BIN names the folder of llama.cpp's tools for the real llama-bench; without it, PATH is looked at.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tinyedge.errors import PeerError
from tinyedge.gguf_file import read_gguf
from tinyedge.model_facts import ModelFacts, describe_model
from tinyedge_bench.peers import PEERS, open_peer
from tinyedge_bench.peers.peer import patience_s, quoted
from tinyedge_bench.peers.program import run_program
from tinyedge_bench.speed.cases import Case
from tinyedge_bench.suite.random_checkpoint import demo_tokenizer
from tinyedge_quantize.convert import convert

# What llama-bench (llama.cpp 0c1e570) printed for -p 64 -n 0 -d 16 -t 1 -ngl 0 -r 1 -o json on the demo checkpoint in F16.
RECORDED = {
    "build_commit": "0c1e570",
    "build_number": 1,
    "cpu_info": "AMD EPYC",
    "gpu_info": "",
    "backends": "CPU",
    "model_filename": "demo-f16.gguf",
    "model_type": "llama ?B F16",
    "model_size": 7678976,
    "model_n_params": 3836672,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_threads": 1,
    "type_k": "f16",
    "type_v": "f16",
    "n_gpu_layers": 0,
    "flash_attn": -1,
    "devices": "none",
    "n_prompt": 64,
    "n_gen": 0,
    "n_depth": 16,
    "test_time": "2026-11-22T01:23:03Z",
    "avg_ns": 8146891,
    "stddev_ns": 0,
    "avg_ts": 7855.757491,
    "stddev_ts": 0.000000,
    "samples_ns": [8146891],
    "samples_ts": [7855.76],
}
RECORDED_CASE = Case(prompt=64, generate=0, depth=16, threads=1)
HELP = "-d, --n-depth <n>\n-dev, --device <dev0/dev1/...>\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(demo_tokenizer().parent, tmp_path_factory.mktemp("peers") / "demo.gguf").path


@pytest.fixture(scope="module")
def facts(model: Path) -> ModelFacts:
    return describe_model(read_gguf(model))


def _script(path: Path, body: str) -> Path:
    """A program of a few lines of Python."""
    path.write_text(f"#!{sys.executable}\nimport json, os, subprocess, sys, time\n{body}\n")
    path.chmod(0o755)
    return path


def _bench(folder: Path, row: str, backends: str = "CPU", help_text: str = HELP) -> Path:
    """A llama-bench that keeps its arguments in `asked` and answers a measurement with what the expression `row` gives."""
    return _script(
        folder / "llama-bench",
        f"""
if "--help" in sys.argv:
    print({help_text!r})
    sys.exit()
recorded = {RECORDED!r} | {{"backends": {backends!r}}}
with open({str(folder / "asked")!r}, "w") as file:
    json.dump(sys.argv[1:], file)
probe = sys.argv[sys.argv.index("-p") + 1] == "1"
print(json.dumps([recorded]) if probe else {row})
""",
    )


def _real_llama_bench() -> str:
    folder = os.environ.get("TINYEDGE_LLAMA_BIN")
    found = str(Path(folder) / "llama-bench") if folder else shutil.which("llama-bench")
    if not found:
        pytest.skip("TINYEDGE_LLAMA_BIN does not name llama.cpp's tools, and llama-bench is not on PATH")
    return found


@pytest.mark.parametrize(
    "case",
    [
        Case(prompt=32, generate=0, threads=1),
        Case(prompt=0, generate=8, threads=1, depth=16),
        Case(prompt=16, generate=8, threads=1, kv_type="Q8_0"),
        Case(prompt=32, generate=0, threads=1, sequences=4),
        Case(prompt=0, generate=8, threads=1, sequences=3),
        Case(prompt=0, generate=8, depth=16, threads=1, sequences=2, kv_type="Q8_0"),
        Case(prompt=16, generate=8, threads=1, sequences=2),
    ],
    ids=lambda case: str(case.name),
)
def test_the_real_llama_bench_measures_every_kind_of_case(model: Path, facts: ModelFacts, case: Case) -> None:
    peer = open_peer(f"llama-bench={_real_llama_bench()}", model, facts)
    if case.sequences > 1 and peer.supports(case):
        pytest.skip(str(peer.supports(case)))
    assert (peer.name, peer.supports(case)) == ("llama-bench", None)
    assert peer.version.rpartition(" ")[0]
    assert 0 < peer.sample(case) < 60
    peer.close()


def test_seconds_are_those_that_llama_bench_recorded(tmp_path: Path, model: Path, facts: ModelFacts) -> None:
    _bench(tmp_path, "json.dumps([recorded])")
    peer = open_peer(f"llama-bench={tmp_path}", model, facts)
    assert peer.version == "0c1e570 (1)"
    assert peer.sample(RECORDED_CASE) == 0.008146891


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (Case(prompt=512, generate=0, threads=4), "-t 4 -ctk f16 -ctv f16 -ngl 0 -dev none -d 0 -p 512 -n 0"),
        (Case(prompt=0, generate=128, threads=4, depth=64), "-t 4 -ctk f16 -ctv f16 -ngl 0 -dev none -d 64 -p 0 -n 128"),
        (Case(prompt=9, generate=8, threads=4), "-t 4 -ctk f16 -ctv f16 -ngl 0 -dev none -d 0 -p 0 -n 0 -pg 9,8"),
        (Case(prompt=9, generate=0, threads=1, kv_type="Q8_0"), "-t 1 -ctk q8_0 -ctv q8_0 -ngl 0 -dev none -d 0 -p 9 -n 0"),
        (Case(prompt=9, generate=0, threads=1, backend="cuda"), "-t 1 -ctk f16 -ctv f16 -ngl 99 -d 0 -p 9 -n 0"),
    ],
)
def test_llama_bench_is_asked_for_the_case(tmp_path: Path, model: Path, facts: ModelFacts, case: Case, expected: str) -> None:
    asked = {"n_prompt": case.prompt, "n_gen": case.generate, "n_depth": case.depth, "n_threads": case.threads}
    _bench(tmp_path, f"json.dumps([recorded | {asked!r}])", "CUDA, CPU")
    peer = open_peer(f"llama-bench={tmp_path}", model, facts)
    assert peer.supports(case) is None
    peer.sample(case)
    command = ["-m", str(model.absolute()), *expected.split(), "-r", "1", "-o", "json"]
    assert json.loads((tmp_path / "asked").read_text()) == command


def test_cases_that_llama_bench_does_not_have_are_named(tmp_path: Path, model: Path, facts: ModelFacts) -> None:
    _bench(tmp_path, "''")
    peer = open_peer(f"llama-bench={tmp_path}", model, facts)
    assert peer.supports(Case(prompt=8, generate=0, threads=1, sequences=4)) == (
        "llama-bench measures one sequence only, and llama-batched-bench is not beside it"
    )
    assert peer.supports(Case(prompt=8, generate=0, threads=1, backend="cuda")) == "this llama-bench was built for CPU only"
    _bench(tmp_path, "''", "CUDA", HELP.splitlines()[0])
    old = open_peer(f"llama-bench={tmp_path}", model, facts)
    assert "too old for --device none" in str(old.supports(Case(prompt=8, generate=0, threads=1)))


# What llama-batched-bench (llama.cpp 0c1e570) printed for -npp 0 -ntg 8 -npl 4 -t 1 -tb 1 -c 32 --output-format jsonl.
BATCHED = (
    '{"n_kv_max": 1024, "n_batch": 2048, "n_ubatch": 512, "flash_attn": -1, "is_pp_shared": 0, "n_gpu_layers": 0, '
    '"n_threads": 1, "n_threads_batch": 1, "pp": 0, "tg": 8, "pl": 4, "n_kv": 32, "t_pp": 0.000000, "speed_pp": -nan, '
    '"t_tg": 0.009560, "speed_tg": 3347.280273, "t": 0.009560, "speed": 3347.280273}'
)


@pytest.mark.parametrize(
    ("case", "changes", "outcome"),
    [
        (Case(prompt=0, generate=8, threads=1, sequences=4), {}, 0.00956),
        (Case(prompt=0, generate=8, depth=64, threads=1, sequences=4), {'"pp": 0': '"pp": 64', "0.000000": "9.5"}, 0.00956),
        (Case(prompt=64, generate=8, threads=1, sequences=4), {'"pp": 0': '"pp": 64', "0.000000": "9.5"}, 9.50956),
        (Case(prompt=0, generate=9, threads=1, sequences=4), {}, "measured another test than tg9 x4"),
        (
            Case(prompt=0, generate=8, threads=1, sequences=4),
            {"0.009560": "-nan"},
            "gave no time for tg8 x4",
        ),
        (Case(prompt=0, generate=8, threads=1, sequences=4), {"}": ""}, "printed something else than the row of one test"),
        (Case(prompt=0, generate=8, threads=1, sequences=4), {"{": "x"}, "printed something else than the row of one test"),
    ],
)
def test_several_sequences_are_what_llama_batched_bench_recorded(
    tmp_path: Path, model: Path, facts: ModelFacts, case: Case, changes: dict[str, str], outcome: float | str
) -> None:
    line = BATCHED
    for old, new in changes.items():
        line = line.replace(old, new)
    _bench(tmp_path, "''")
    _script(tmp_path / "llama-batched-bench", f"print(); print({line!r}); print()")
    peer = open_peer(f"llama-bench={tmp_path}", model, facts)
    assert peer.supports(case) is None
    if isinstance(outcome, float):
        assert peer.sample(case) == pytest.approx(outcome)
    else:
        with pytest.raises(PeerError, match=outcome):
            peer.sample(case)
    assert "no depth before a prompt" in str(peer.supports(replace(case, prompt=8, depth=8)))


def test_a_llama_batched_bench_that_lost_its_answer_is_asked_again(tmp_path: Path, model: Path, facts: ModelFacts) -> None:
    _bench(tmp_path, "''")
    _script(
        tmp_path / "llama-batched-bench",
        f"""
if os.path.exists({str(tmp_path / "second")!r}):
    print({BATCHED!r})
open({str(tmp_path / "second")!r}, "w").close()
""",
    )
    peer = open_peer(f"llama-bench={tmp_path}", model, facts)
    assert peer.sample(Case(prompt=0, generate=8, threads=1, sequences=4)) == pytest.approx(0.00956)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("json.dumps([recorded | {'n_prompt': 512}])", "llama-bench measured another test than pp64 @ d16 with 1 thread"),
        ("json.dumps([recorded | {'samples_ns': []}])", "llama-bench gave no time for pp64 @ d16"),
        ("json.dumps([recorded | {'samples_ns': [True]}])", "llama-bench gave no time for pp64 @ d16"),
        ("json.dumps([recorded | {'samples_ns': [-5]}])", "llama-bench gave no time for pp64 @ d16"),
        ("json.dumps([recorded | {'samples_ns': [float('nan')]}])", "llama-bench gave no time for pp64 @ d16"),
        ("json.dumps([recorded, recorded])", "llama-bench printed something else than the row of one test"),
        ("'7'", "llama-bench printed something else than the row of one test"),
        ("'['", "llama-bench printed something else than JSON: ["),
        ("'[' * 200000", "llama-bench printed something else than JSON: [[["),
        ("'\\x1b[2J\\x07boom'", "llama-bench printed something else than JSON: [2J boom"),
        ("'x' * 3_000_000", "llama-bench printed more than 1 MiB where a short answer was expected"),
        ("sys.exit('no\\nmemory \\x1b[31m left')", "llama-bench failed with exit code 1 and said: memory  [31m left"),
        ("os.kill(os.getpid(), 11)", "llama-bench was ended by SIGSEGV"),
    ],
)
def test_a_llama_bench_that_misbehaves_is_one_sentence(
    tmp_path: Path, model: Path, facts: ModelFacts, row: str, problem: str
) -> None:
    _bench(tmp_path, row)
    peer = open_peer(f"llama-bench={tmp_path}", model, facts)
    with pytest.raises(PeerError) as caught:
        peer.sample(RECORDED_CASE)
    assert caught.value.problem.startswith(problem)
    assert caught.value.problem.isprintable() and len(caught.value.problem) < 300


def test_what_is_no_program_is_named(tmp_path: Path, model: Path, facts: ModelFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "plain").write_text("not a program")
    (tmp_path / "garbage").write_bytes(b"\x7fELF garbage")
    (tmp_path / "garbage").chmod(0o755)
    problems = {
        "llama-bench": "llama-bench is not on PATH",
        f"llama-bench={tmp_path}": f"there is no program {tmp_path}/llama-bench",
        f"llama-bench={tmp_path}/none/x": f"there is no program {tmp_path}/none/x",
        f"llama-bench={tmp_path}/plain": f"{tmp_path}/plain is not executable",
        f"llama-bench={tmp_path}/garbage": "llama-bench cannot be started (Exec format error)",
        "llama-bench=/bin/echo": "/bin/echo is not a llama-bench, or one from before it knew --n-depth",
        "vllm": "there is no peer 'vllm'",
        "llama-cpp-python=x": "--peer llama-cpp-python takes no value (x)",
        "ollama=x": "--peer ollama takes no value (x)",
    }
    for argument, problem in problems.items():
        with pytest.raises(PeerError) as caught:
            open_peer(argument, model, facts)
        assert caught.value.problem == problem
    assert list(PEERS) == ["llama-bench", "ollama", "llama-cpp-python", "mlx-lm"]


def test_a_path_that_llama_bench_would_split_is_refused(tmp_path: Path, facts: ModelFacts) -> None:
    with pytest.raises(PeerError, match="takes a comma in a path for two paths"):
        open_peer(f"llama-bench={_bench(tmp_path, '')}", tmp_path / "a,b.gguf", facts)


def _lives(pid: int) -> bool:
    """Whether the process runs; one that ended and waits for its parent does not."""
    state = Path(f"/proc/{pid}/stat")
    try:
        os.kill(pid, 0)
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def _ends_soon(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while _lives(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not _lives(pid)


_HANGS = """
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(sys.argv[1] + ".part", "w") as file:
    file.write(str(child.pid))
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(600)
"""


def test_a_program_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    hanging, pid = _script(tmp_path / "hangs", _HANGS), tmp_path / "pid"
    with pytest.raises(PeerError, match="x did not finish within 3 s"):
        run_program("x", [str(hanging), str(pid)], 3.0)
    assert _ends_soon(int(pid.read_text()))


def test_ctrl_c_ends_a_running_peer_and_what_it_started(tmp_path: Path) -> None:
    hanging, pid = _script(tmp_path / "hangs", _HANGS), tmp_path / "pid"
    code = f"from tinyedge_bench.peers.program import run_program; run_program('x', {[str(hanging), str(pid)]!r}, 60.0)"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as caller:
        deadline = time.monotonic() + 20
        while not pid.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        caller.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in caller.communicate(timeout=20)[1]
    assert _ends_soon(int(pid.read_text()))


def test_a_program_that_left_its_group_with_the_pipe_open_is_not_waited_for(tmp_path: Path) -> None:
    script = "subprocess.Popen(['sleep', '5'], start_new_session=True); print('done')"
    started = time.monotonic()
    assert run_program("x", [str(_script(tmp_path / "leaves", script))], 30.0) == "done\n"
    assert time.monotonic() - started < 4


def test_megabytes_of_complaints_neither_block_nor_are_kept(tmp_path: Path) -> None:
    script = "sys.stderr.write('noise ' * 1_000_000 + '\\nthe reason\\n'); sys.exit(3)"
    with pytest.raises(PeerError, match="x failed with exit code 3 and said: the reason"):
        run_program("x", [str(_script(tmp_path / "noisy", script))], 30.0)


def test_no_shell_reads_an_argument(tmp_path: Path) -> None:
    script = _script(tmp_path / "echoes", "print(sys.argv[1])")
    assert run_program("x", [str(script), "$(id); `id`"], 30.0) == "$(id); `id`\n"
    with pytest.raises(PeerError, match="x cannot be started"):
        run_program("x", [str(script), "a\0b"], 30.0)


def test_patience_grows_with_the_weights_and_the_tokens(facts: ModelFacts) -> None:
    assert patience_s(0) == 120
    seven_billion = replace(facts, weight_bytes=4_000_000_000).weight_bytes
    assert patience_s(seven_billion, 512) > 1000 + 512 * 8
    assert quoted("a\n  b\tc\x1b \n\n") == "b c"
    assert len(quoted("y" * 5000)) == 200
