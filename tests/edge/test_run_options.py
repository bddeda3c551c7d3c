"""What `tinyedge run` does beyond plain text: stop strings, likelihoods, adapters, a prompt cut to fit, drafts, structure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_engine_library import lora
from tiny_gguf import tiny_parts, write

COMMAND = Path(sys.executable).with_name("tinyedge")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model") / "tiny.gguf", tiny_parts())


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint as Q8_0: a model that says something."""
    from tinyedge.cli.models import demo_checkpoint
    from tinyedge_quantize.convert import convert

    return convert(demo_checkpoint(), tmp_path_factory.mktemp("demo") / "demo.gguf", "Q8_0").path


def run(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [str(COMMAND), "run", *map(str, arguments), "--threads", "1"]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=300, check=False, env=os.environ)


def text(*arguments: str | Path) -> str:
    done = run(*arguments)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_a_stop_string_ends_the_text(demo: Path) -> None:
    whole = text(demo, "-p", "Once upon a time", "-n", "60", "--temp", "0")
    assert "." in whole
    stopped = run(demo, "-p", "Once upon a time", "-n", "60", "--temp", "0", "--stop", ".", "--stop", "never said")
    assert stopped.stdout.decode() == whole[: whole.index(".")]
    assert b"ended at a stop string" in stopped.stderr


def test_likelihoods_are_a_line_a_token_or_a_list(demo: Path) -> None:
    arguments = (demo, "-p", "Once upon a", "-n", "4", "--temp", "0", "--logprobs", "3")
    report = json.loads(text(*arguments, "--json"))
    assert len(report["logprobs"]) == 4
    for place in report["logprobs"]:
        assert place["drawn"] == place["top"][0]
        assert len(place["top"]) == 3
    lines = run(*arguments).stderr.decode().splitlines()
    assert sum(line.startswith('"') for line in lines) == 4


def test_a_prompt_that_is_too_long_is_refused_by_how_much_or_cut(demo: Path) -> None:
    long = "The wolf said. " * 300
    refused = run(demo, "-p", long, "-n", "5")
    assert refused.returncode == 15
    assert b"too many" in refused.stderr
    cut = run(demo, "-p", long, "-n", "5", "--truncate", "--json")
    assert cut.returncode == 0, cut.stderr
    assert b"tokens are cut: the context holds 512, 5 of them for the answer" in cut.stderr
    report = json.loads(cut.stdout)
    assert (report["prompt_tokens"], report["generated_tokens"]) == (507, 5)
    fits = run(demo, "-p", "The wolf said", "-n", "5", "--truncate", "--temp", "0")
    assert b"cut" not in fits.stderr
    assert fits.stdout == run(demo, "-p", "The wolf said", "-n", "5", "--temp", "0").stdout


def test_an_adapter_changes_the_text_and_at_scale_zero_does_not(model: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "style.gguf", lora(model, alpha=40.0))
    arguments = ("-p", "abc an", "-n", "20", "--temp", "0")
    plain = text(model, *arguments)
    assert text(model, *arguments, "--lora", f"{file}:0") == plain
    assert text(model, *arguments, "--lora", file) != plain
    assert text(model, *arguments, "--lora", file) == text(model, *arguments, "--lora", f"{file}:0.5", "--lora", f"{file}:0.5")


@pytest.mark.parametrize(
    ("value", "code", "sentence"),
    [
        ("absent.gguf", 2, "there is no adapter file absent.gguf"),
        ("MODEL", 26, "is not a LoRA adapter"),
        ("MODEL:1e9", 2, "must be within 1000 of zero"),
        ("MODEL:nan", 2, "must be within 1000 of zero"),
    ],
)
def test_a_wrong_adapter_is_refused_with_a_sentence(model: Path, value: str, code: int, sentence: str) -> None:
    done = run(model, "-p", "a", "--lora", value.replace("MODEL", str(model)))
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr.decode()
    assert done.stdout == b""


def test_structured_output_parses_or_the_run_says_it_was_cut(demo: Path) -> None:
    schema = json.dumps({"type": "object", "properties": {"age": {"type": "integer"}, "wolf": {"type": "boolean"}},
                         "required": ["age", "wolf"], "additionalProperties": False})  # fmt: skip
    for seed in range(4):
        done = run(demo, "-p", "A wolf as JSON: ", "-n", "80", "--seed", str(seed), "--temp", "1.5", "--json-schema", schema)
        assert done.returncode == 0, done.stderr
        if b"was cut" in done.stderr:
            continue
        value = json.loads(done.stdout)
        assert isinstance(value["age"], int)
        assert isinstance(value["wolf"], bool)
    cut = run(demo, "-p", "A wolf as JSON: ", "-n", "2", "--seed", "1", "--json-schema", schema)
    assert b"warning: the text was cut before the grammar was complete" in cut.stderr


@pytest.mark.parametrize(("schema", "code"), [("false", 24), ('{"enum": []}', 24), ("{", 24), ("absent.json", 24)])
def test_a_schema_that_nothing_satisfies_is_refused(model: Path, schema: str, code: int) -> None:
    done = run(model, "-p", "a", "--json-schema", schema)
    assert done.returncode == code, done.stderr
    assert done.stdout == b""
    assert done.stderr.decode().strip().count("\n") == 0


def test_drafts_do_not_change_greedy_text(demo: Path) -> None:
    story = text(demo, "-p", "Once upon a time", "-n", "120", "--temp", "0")
    prompt = f"Once upon a time{story}\n\nOnce upon a time"
    arguments = (demo, "-p", prompt, "-n", "100", "--temp", "0")
    plain = text(*arguments)
    looked_up = run(*arguments, "--lookup")
    assert looked_up.stdout.decode() == plain
    assert b"drafted" in looked_up.stderr
    drafted = run(*arguments, "--draft", demo)
    assert drafted.stdout.decode() == plain, drafted.stderr


def test_a_draft_of_another_vocabulary_is_refused(demo: Path, model: Path) -> None:
    done = run(demo, "-p", "a", "--draft", model)
    assert done.returncode == 25, done.stderr
    assert done.stdout == b""


def test_energy_is_measured_or_the_reason_told(demo: Path) -> None:
    report = json.loads(text(demo, "-p", "Once", "-n", "5", "--energy", "--json"))
    energy = report["energy"]
    assert energy["seconds"] > 0
    assert (energy["joules"] is None) == (report["joules_per_token"] is None) == bool(energy["reason"])


def test_the_report_gives_bytes_read_and_their_rate(demo: Path) -> None:
    report = json.loads(text(demo, "-p", "Once", "-n", "30", "--json"))
    assert 0.8 * report["model_bytes"] < report["weight_bytes_per_step"] < report["model_bytes"]
    assert report["kv_bytes_per_step"] > 0
    per_token = report["weight_bytes_per_step"] + report["kv_bytes_per_step"]
    assert report["bytes_per_s"] == pytest.approx(per_token * report["generated_tokens_per_s"], rel=0.01)


def test_a_stretched_context_is_warned_of(demo: Path) -> None:
    done = run(demo, "-p", "Once", "-n", "3", "--ctx", "1024", "--rope-scaling", "yarn")
    assert done.returncode == 0, done.stderr
    assert b"warning: " in done.stderr
    assert b"context 1024" in done.stderr
    plain = run(demo, "-p", "Once", "-n", "3", "--ctx", "1024")
    assert b"--rope-scaling" in plain.stderr


@pytest.mark.parametrize("kind", ["q8_0", "Q4_0", "f16", "bf16"])
def test_kv_types_run(demo: Path, kind: str) -> None:
    report = json.loads(text(demo, "-p", "Once upon a time", "-n", "10", "--kv", kind, "--json"))
    assert report["kv_type"] == kind.upper()


def test_weights_that_could_not_be_locked_are_said(demo: Path) -> None:
    limits = ["bash", "-c", 'ulimit -l 8 && exec "$@"', "bash"]
    command = [*limits, str(COMMAND), "run", str(demo), "-p", "a", "-n", "1", "--mlock"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    privileged = os.geteuid() == 0  # may lock whatever the limit says
    assert done.returncode == 0
    assert (b"warning: the system locked" in done.stderr) != privileged
