"""`tinyedge run` and `tinyedge bench` as a user meets them: the installed command, its output, its exit codes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from tiny_gguf import tiny_parts, write

COMMAND = Path(sys.executable).with_name("tinyedge")
JSON_KEYS = """
text model stop_reason type backend device threads context kv_type steps_to_fit warnings load_s prompt_tokens reused_tokens
prompt_tokens_per_s ttft_s generated_tokens generated_tokens_per_s steps weight_bytes_per_step kv_bytes_per_step bytes_per_s
memory_bytes_per_s memory_share drafted_tokens accepted_tokens draft_speedup peak_rss_bytes model_bytes throttling
temperature_max_c energy joules_per_token seed
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model") / "tiny.gguf", tiny_parts())


def tinyedge(
    *arguments: str | Path, stdin: bytes = b"", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=300,
        check=False,
        env={**os.environ, **(environment or {})},
    )


def run(model: Path, *arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return tinyedge("run", model, "--threads", "1", *arguments, stdin=stdin)


def refused(done: subprocess.CompletedProcess[bytes], code: int, sentence: str) -> None:
    """The command left with `code`, one error line that says `sentence`, no traceback and nothing on stdout."""
    error = done.stderr.decode()
    assert done.returncode == code, error
    assert sentence in " ".join(error.replace("│", " ").split())
    assert "Traceback" not in error
    assert done.stdout == b""


def test_stdout_holds_the_text_alone_and_stderr_the_report(model: Path) -> None:
    done = run(model, "-p", "ab", "-n", "12", "--temp", "0")
    text = json.loads(run(model, "-p", "ab", "-n", "12", "--temp", "0", "--json").stdout)["text"]
    assert done.returncode == 0
    assert done.stdout.decode("utf-8") == text
    report = done.stderr.decode()
    assert report.startswith("CPU (")
    for words in (
        "generated 12 tokens at",
        "tokens/s",
        "first token after",
        "loaded in",
        "peak memory",
        "threads 1",
        "context 128",
    ):
        assert words in report
    assert "\x1b" not in report


def test_json_is_one_object_with_the_promised_keys(model: Path) -> None:
    done = run(model, "-p", "ab", "-n", "5", "--seed", "42", "--json")
    report = json.loads(done.stdout)
    assert list(report) == JSON_KEYS.split()
    assert report["generated_tokens"] == 5
    assert report["stop_reason"] == "length"
    assert report["seed"] == 42
    assert (report["backend"], report["threads"], report["context"], report["type"]) == ("cpu", 1, 128, "Q8_0")
    assert report["model_bytes"] == model.stat().st_size
    assert report["peak_rss_bytes"] > report["model_bytes"]


def test_the_seed_that_is_reported_gives_the_same_text_again(model: Path) -> None:
    arguments = ("-p", "ab", "-n", "30", "--temp", "1.5", "--json")
    first = json.loads(run(model, *arguments).stdout)
    again = json.loads(run(model, *arguments, "--seed", str(first["seed"])).stdout)
    assert again["text"] == first["text"]
    others = {json.loads(run(model, *arguments, "--seed", str(seed)).stdout)["text"] for seed in (1, 2, 3)}
    assert len(others) > 1


def test_the_prompt_may_come_from_a_file_or_a_pipe(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"abc an\n")
    texts = {
        run(model, "-p", "abc an", "-n", "9", "--temp", "0").stdout,
        run(model, "-f", file, "-n", "9", "--temp", "0").stdout,
        run(model, "-n", "9", "--temp", "0", stdin=b"abc an\n").stdout,
        run(model, "-f", "-", "-n", "9", "--temp", "0", stdin=b"abc an").stdout,
    }
    assert len(texts) == 1


def test_output_is_utf_8_in_a_locale_that_is_not(model: Path) -> None:
    done = tinyedge(
        "run", model, "-p", "ab", "-n", "60", "--temp", "100", "--top-k", "0", "--top-p", "1", "--min-p", "0", "--seed", "1",
        environment={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.decode("utf-8")


def test_without_a_prompt_a_terminal_gets_told_how(model: Path) -> None:
    primary, secondary = pty.openpty()
    done = subprocess.run([COMMAND, "run", model], stdin=secondary, capture_output=True, timeout=60, check=False)
    os.close(secondary)
    os.close(primary)
    refused(done, 2, "give it with -p TEXT or -f FILE, or pipe it in")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["-p", "a", "--temp", "-1"], 2, "the temperature must be from 0 to 100, not -1"),
        (["-p", "a", "--top-k", "-3"], 2, "top-k must be 0 (no limit) or more"),
        (["-p", "a", "--top-p", "0"], 2, "top-p must be above 0"),
        (["-p", "a", "--min-p", "2"], 2, "min-p must be from 0 to 1"),
        (["-p", "a", "--repeat-penalty", "0"], 2, "repeat penalty must be above 0"),
        (["-p", "a", "--seed", "-1"], 2, "the seed must be from 0"),
        (["-p", "a", "--threads", "0"], 2, "--threads"),
        (["-p", "a", "-f", "b"], 2, "give -p or -f, not both"),
        (["-p", "a", "--backend", "cuda", "--gpu-layers", "x"], 2, "--gpu-layers"),
        (["-p", "a", "--backend", "tpu"], 12, "there is no backend tpu"),
        (["-p", "a", "--gpu-layers", "2", "--backend", "cpu"], 12, "--gpu-layers needs a GPU"),
        (["-p", "a", "--seed", "9" * 400], 2, "the seed must be from 0 to 4294967294, not 999999"),
        (["-p", "a", "--top-k", "2147483648"], 2, "at most 2147483647"),
        (["-p", "a", "--ctx", "9" * 400], 2, "--ctx"),
        (["-p", "a", "--ctx", "1"], 2, "'--ctx': it must be from 2 to 2147483647"),
        (["-p", "a", "--flash-attn", "off", "--kv", "q8_0"], 2, "leave out --flash-attn off or --kv Q8_0"),
        (["-p", "a", "--rope-scale", "2"], 2, "add --rope-scaling linear or yarn"),
        (["-p", "a", "--ctx", "2000000000", "--strict"], 13, "are free; this fits: --ctx 128"),
        (["-f", "absent.txt"], 15, "absent.txt cannot be read"),
    ],
)
def test_wrong_options_are_refused_with_a_sentence(model: Path, arguments: list[str], code: int, sentence: str) -> None:
    refused(run(model, *arguments), code, sentence)


def test_a_prompt_longer_than_the_context_says_by_how_much(model: Path) -> None:
    done = run(model, "-p", "z" * 200)
    assert done.returncode == 15
    assert "too many; shorten the prompt or raise --ctx" in done.stderr.decode()


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenized(model: Path) -> None:
    done = run(model, "-p", "z" * 100_000)
    assert done.returncode == 15
    assert "has 100000 bytes, too many for a context of 128 tokens" in done.stderr.decode()


@pytest.mark.parametrize("command", [["run", "-p", "a"], ["inspect"], ["bench"]], ids=" ".join)
def test_an_empty_name_is_wrong_usage(command: list[str]) -> None:
    refused(tinyedge(*command, ""), 2, "an empty name")


def test_an_empty_standard_input_is_no_prompt(model: Path) -> None:
    refused(tinyedge("run", model), 15, "the prompt from standard input is empty")


def test_a_pipe_is_no_model_and_nobody_waits_for_it(model: Path, tmp_path: Path) -> None:
    del model
    for name in ("pipe", "pipe.gguf"):
        os.mkfifo(tmp_path / name)
        for command in (["run", tmp_path / name, "-p", "a"], ["inspect", tmp_path / name]):
            done = subprocess.run([COMMAND, *command], capture_output=True, timeout=60, check=False)
            assert done.returncode in (3, 16), done.stderr


SHELL_CASES = [
    ('run "$MODEL" -p ab -n 3 >/dev/full', 9, "cannot be written (No space left on device)"),
    ('run "$MODEL" -p ab -n 3 >&-', 9, "standard output is closed"),
    ('run "$MODEL" -p ab -n 3 --json >/dev/full', 9, "cannot be written (No space left on device)"),
    ('run "$MODEL" -n 3 <&-', 2, "there is no prompt"),
    ('inspect "$MODEL" >/dev/full', 9, "cannot be written (No space left on device)"),
    ('inspect "$MODEL" --json >&-', 9, "standard output is closed"),
    ("--help >/dev/full", 9, "cannot be written (No space left on device)"),
]


@pytest.mark.parametrize(("arguments", "code", "sentence"), SHELL_CASES)
def test_a_standard_stream_that_is_full_or_closed_gets_a_sentence(
    model: Path, arguments: str, code: int, sentence: str
) -> None:
    environment = {**os.environ, "MODEL": str(model), "TINYEDGE": str(COMMAND)}
    done = subprocess.run(
        ["sh", "-c", f'exec "$TINYEDGE" {arguments}'], capture_output=True, timeout=60, check=False, env=environment
    )
    refused(done, code, sentence)


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
def test_the_text_comes_where_stderr_is_closed_or_full(model: Path, stderr: str) -> None:
    command = f'exec "$0" run "$1" -p ab -n 5 --temp 0 --threads 1 {stderr}'
    done = subprocess.run(["sh", "-c", command, COMMAND, model], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stdout == run(model, "-p", "ab", "-n", "5", "--temp", "0").stdout


def test_tables_are_utf_8_in_a_locale_that_is_not(tmp_path: Path) -> None:
    parts = tiny_parts()
    parts.set("general.name", "str", "火".encode())
    model = write(tmp_path / "named.gguf", parts)
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    inspected = tinyedge("inspect", model, environment=ascii_only)
    assert (inspected.returncode, "火" in inspected.stdout.decode()) == (0, True), inspected.stderr
    measured = tinyedge("bench", model, "-p", "0", "-n", "4", "--threads", "1", environment=ascii_only)
    assert (measured.returncode, "±" in measured.stdout.decode()) == (0, True), measured.stderr


def test_a_prompt_that_is_not_utf_8_is_refused(model: Path) -> None:
    refused(run(model, stdin=b"caf\xe9"), 15, "standard input is not UTF-8 at byte 3")


def test_files_that_are_no_models_are_refused(model: Path, tmp_path: Path) -> None:
    truncated = tmp_path / "truncated.gguf"
    truncated.write_bytes(model.read_bytes()[:-5000])
    other = tmp_path / "other.gguf"
    parts = tiny_parts()
    parts.set("general.architecture", "str", b"clip")
    write(other, parts)
    refused(run(truncated, "-p", "a"), 11, "is truncated")
    refused(run(other, "-p", "a"), 5, "clip")
    refused(run(tmp_path / "absent.gguf", "-p", "a"), 16, "does not exist")
    (tmp_path / "README.md").write_text("# A model\n")
    readme = run(tmp_path / "README.md", "-p", "a")
    refused(readme, 3, "README.md is neither safetensors nor a torch.save file")
    assert b"quantizing" not in readme.stderr
    (tmp_path / "folder").mkdir()
    assert run(tmp_path / "folder", "-p", "a").returncode == 3


def test_ctrl_c_stops_the_text_prints_the_report_and_exits_130(model: Path) -> None:
    command = [COMMAND, "run", model, "-p", "ab", "-n", "-1", "--ctx", "100000", "--threads", "1", "--temp", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(30)  # text flows
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"tokens/s; interrupted\n" in error
    assert b"peak memory" in error
    assert b"Traceback" not in error


def test_a_closed_pipe_ends_it_quietly(model: Path) -> None:
    command = [COMMAND, "run", model, "-p", "ab", "-n", "-1", "--ctx", "100000", "--threads", "1", "--temp", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        error = process.stderr.read()
        process.wait(60)
    assert error.startswith(b"CPU (")  # the line that says what was chosen
    assert b"rror" not in error
    assert b"tokens/s" not in error


def test_a_terminal_gets_no_control_characters_from_the_model(model: Path) -> None:
    primary, secondary = pty.openpty()
    arguments = ["--temp", "100", "--top-k", "0", "--top-p", "1", "--min-p", "0", "--seed", "3", "-n", "100"]
    with subprocess.Popen(
        [COMMAND, "run", model, "-p", "ab", *arguments, "--threads", "1"], stdout=secondary, stderr=subprocess.PIPE
    ) as process:
        os.close(secondary)
        shown = b""
        try:
            while part := os.read(primary, 65536):
                shown += part
        except OSError:  # Linux ends a closed terminal so
            pass
        process.wait(60)
    os.close(primary)
    assert process.returncode == 0
    assert shown
    assert {chr(code) for code in range(32) if chr(code) in shown.decode()} <= set("\r\n\t")


def test_llama_cpps_log_appears_only_when_asked_for(model: Path) -> None:
    assert b"llama_model_loader" not in run(model, "-p", "a", "-n", "1").stderr
    assert b"llama_model_loader" in run(model, "-p", "a", "-n", "1", "--verbose").stderr


def test_the_demo_is_quantized_once_into_the_cache(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    arguments = ("run", "demo", "-p", "Once upon a time", "-n", "8", "--threads", "1", "--temp", "0")
    first = tinyedge(*arguments, environment=environment)
    again = tinyedge(*arguments, environment=environment)
    assert (first.returncode, again.returncode) == (0, 0), first.stderr.decode()
    assert b"quantizing the demo model to Q4_K_M" in first.stderr
    assert b"quantizing" not in again.stderr
    assert first.stdout == again.stdout
    cached = list((tmp_path / "tinyedge").iterdir())
    assert [path.suffix for path in cached] == [".gguf"]


def test_a_changed_checkpoint_is_quantized_anew(tmp_path: Path) -> None:
    import shutil

    import tinyedge as package

    source = tmp_path / "story"
    shutil.copytree(Path(package.__file__).parent / "demo", source)
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    arguments = ("run", source, "-p", "Once", "-n", "2", "--threads", "1")
    for expected in (True, False):
        assert (b"quantizing" in tinyedge(*arguments, environment=environment).stderr) == expected
    os.utime(source / "pytorch_model.bin", (1, 1))
    assert b"quantizing" in tinyedge(*arguments, environment=environment).stderr


def test_bench_prints_llama_benchs_columns(model: Path) -> None:
    done = tinyedge("bench", model, "-p", "16", "-n", "8", "-r", "3", "--threads", "1,2")
    assert done.returncode == 0, done.stderr.decode()
    lines = done.stdout.decode().splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == [
        "model", "size", "params", "backend", "threads", "test", "t/s", "median", "runs",
    ]  # fmt: skip
    table = lines[2 : lines.index("")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert [(row[4], row[5], row[8]) for row in rows] == [
        ("1", "pp16", "3"), ("1", "tg8", "3"), ("2", "pp16", "3"), ("2", "tg8", "3"),
    ]  # fmt: skip


def test_bench_json_holds_every_sample_and_the_machine(model: Path) -> None:
    done = tinyedge("bench", model, "-p", "0", "-n", "8", "-r", "4", "--threads", "1", "--json")
    report = json.loads(done.stdout)
    (result,) = report["results"]
    assert (result["test"], len(result["samples_ns"]), len(result["samples_ts"])) == ("tg8", 4, 4)
    assert min(result["samples_ts"]) <= result["median_ts"] <= max(result["samples_ts"])
    assert report["machine"]["physical_cores"] >= 1
    assert report["build"]["ggml"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-p", "0", "-n", "0"],
        ["-p", "9" * 400],
        ["--threads", "1,x"],
        ["--threads", "0"],
        ["--threads", "9" * 5000],
        ["-r", "0"],
        ["-p", "128,"],
        ["-d", "-1"],
        ["--pg", "512"],
        ["--pg", "0,8"],
        ["--kv", "f16,q9"],
        ["--batch", "0"],
        ["--batch", "1000"],
        ["--backend", "cpu,"],
        ["--cool", "hot"],
        ["--format", "xml"],
        ["--format", "sqlite"],
        ["--format", "csv", "--json"],
        ["-o", "results.txt"],
        ["-p", ",".join(map(str, range(1, 200))), "-d", ",".join(map(str, range(200)))],
    ],
)
def test_bench_refuses_what_cannot_be_measured(model: Path, arguments: list[str]) -> None:
    assert tinyedge("bench", model, *arguments).returncode == 2
