"""`tinyedge plan` through the installed command."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import tiny_parts, write

from tinyedge.gguf_file import read_gguf
from tinyedge.memory import memory_needed
from tinyedge.model_facts import ModelFacts, describe_model

COMMAND = str(Path(sys.executable).with_name("tinyedge"))
MIB = 1 << 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a trained context of 8192 tokens."""
    parts = tiny_parts()
    parts.set("llama.context_length", "u32", 8192)
    return write(tmp_path_factory.mktemp("a model") / "tiny.gguf", parts)


@pytest.fixture(scope="module")
def facts(model: Path) -> ModelFacts:
    return describe_model(read_gguf(model))


@pytest.fixture(scope="module")
def tinyllama() -> ModelFacts:
    """TinyLlama-1.1B as Q4_K_M."""
    from tinyedge.cli.advise import subject

    return next(each for each in subject(None).models if each.file_type == "Q4_K_M")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, "plan", *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


def planned(*arguments: str | Path) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_this_machine_holds_a_small_model_as_it_was_wished_for(model: Path, facts: ModelFacts) -> None:
    report = planned(model)
    need = memory_needed(facts, 8192)
    assert report["fits"] is True
    assert report["plan"]["context"] == 8192
    assert report["plan"]["steps"] == []
    assert report["memory"]["total_bytes"] == need.total_bytes
    assert (report["memory"]["weights_bytes"], report["memory"]["kv_bytes"]) == (need.weights_bytes, need.kv_bytes)


def test_the_command_it_names_loads_what_was_planned(model: Path) -> None:
    report = planned(model, "--ctx", "700", "--kv", "q8_0", "--threads", "1")
    (command,) = report["commands"]
    words = shlex.split(command)
    assert words[:3] == ["tinyedge", "run", str(model)]
    done = subprocess.run(
        [COMMAND, *words[1:-1], "a", "-n", "2", "--json"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["context"], told["threads"]) == (700, 1)


def test_a_board_is_planned_in_every_size_it_is_sold_in(model: Path) -> None:
    report = planned(model, "--board", "rpi4")
    assert [row["machine"] for row in report["sizes"]] == [f"Raspberry Pi 4 Model B, {size}.0 GiB" for size in (1, 2, 4, 8)]
    assert report["machine"]["name"] == "Raspberry Pi 4 Model B, 1.0 GiB"
    assert "254 MiB are left to firmware" in report["machine"]["reserve"]
    assert report["plan"]["threads"] == 4
    assert report["speed"]["tokens_per_s"] is None
    assert "so small" in report["speed"]["basis"]
    assert [(row["batch"], row["tokens_per_s"]) for row in report["sizes"]] == [(512, None)] * 4


def test_each_size_has_its_steps_and_speed_and_the_rest_is_for_the_one_that_is_named(tinyllama: ModelFacts) -> None:
    from tinyedge.backends import Request
    from tinyedge.cli.plan import _answer, _places, _smallest_that_serves
    from tinyedge.cli.plan_lines import report_lines
    from tinyedge.cli.plan_report import PlannedModel, report

    model = PlannedModel(argument="tl.gguf", facts=tinyllama)
    answers = [_answer(model, Request(), place) for place in _places("rpi4", None)]
    lines = report_lines(report(model, Request(), _smallest_that_serves(answers), answers), 100)
    assert lines[-6:] == [
        "by memory:",
        "   1.0 GiB  context 2048, KV F16, batch 128, 3.4 to 7.1 tokens/s",
        *(f"   {gib}.0 GiB  context 2048, KV F16, batch 512, 3.4 to 7.1 tokens/s" for gib in (2, 4, 8)),
        "the figures above are for 2.0 GiB; --ram picks another",
    ]


def test_a_refusal_shows_the_numbers_it_speaks_of(tinyllama: ModelFacts) -> None:
    from tinyedge.backends import Request
    from tinyedge.cli.plan import _answer, _places
    from tinyedge.cli.plan_lines import report_lines
    from tinyedge.cli.plan_report import PlannedModel, report

    model = PlannedModel(argument="tl.gguf", facts=tinyllama)
    answer = _answer(model, Request(), _places(None, "700M")[0])
    told = report(model, Request(), answer, [answer])
    lines = report_lines(told, 100)
    assert "the model needs at least 665 MiB" in told["problem"]
    assert "take more memory or choose a smaller model" in told["problem"]
    assert "memory at a context of 512 tokens and a batch of 128:" in lines
    assert "  together          665 MiB" in lines
    strict = Request(strict=True)
    answer = _answer(model, strict, _places("rpi3", None)[0])
    assert report(model, strict, answer, [answer])["memory"]["batch"] == 512


def test_small_figures_are_told_as_inspect_tells_them() -> None:
    shown = run("demo").stdout
    assert re.search(r"weights +2\.4 MiB\n  KV cache, F16 +640 KiB\n", shown)


def test_what_was_tuned_here_is_planned_as_run_will_take_it(
    model: Path, facts: ModelFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinyedge.load_plan import Setting
    from tinyedge.tuned import keep

    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    found = Setting(
        threads=1, batch_threads=1, affinity=(), batch=64, flash="off", kv_type="F16", mmap=False, mlock=False
    )  # fmt: skip
    keep(facts, found, {"generation": 1.2})
    report = planned(model)
    plan = report["plan"]
    assert (plan["threads"], plan["batch"], plan["flash"], plan["mmap"]) == (1, 64, "off", False)
    assert "tuned" in plan["reason"]
    assert "--flash-attn" not in report["commands"][0] and "--no-mmap" not in report["commands"][0]
    assert "tuned" not in planned(model, "--board", "rpi4")["plan"]["reason"]


def test_the_expected_speed_is_a_share_of_the_board_s_bandwidth(facts: ModelFacts) -> None:
    """Ollama ran a Q4_0 model of 1.8 B parameters (1.1 GB) at 3.05 tokens/s on a Raspberry Pi 4."""
    from tinyedge.backends import Request
    from tinyedge.cli.plan import _answer, _places
    from tinyedge.cli.plan_report import PlannedModel, report

    large = PlannedModel(argument="large.gguf", facts=replace(facts, weight_bytes=1_120_000_000))
    answers = [_answer(large, Request(), place) for place in _places("rpi4", "4G")]
    speed = report(large, Request(), answers[0], answers)["speed"]
    low, high = speed["tokens_per_s"]
    assert low < 3.05 < high < 12.8e9 / 1.12e9
    assert speed["bandwidth_bytes_per_s"] == 12.8e9


def test_a_mac_is_planned_with_its_gpu(model: Path) -> None:
    report = planned(model, "--board", "mac-m2", "--ram", "16G")
    assert report["plan"]["backend"] == "metal"
    assert report["memory"]["gpu_bytes"] == report["memory"]["total_bytes"]


def test_memory_that_is_short_is_made_to_do_and_every_step_is_said(model: Path) -> None:
    parts = tiny_parts()
    parts.set("llama.context_length", "u32", 1 << 20)
    long = write(model.parent / "long.gguf", parts)
    done = run(long, "--ram", "512M", "--ctx", "1000000")
    context = int(re.search(r"memory at a context of (\d+) tokens", done.stdout)[1])  # type: ignore[index]
    assert done.returncode == 0
    assert 512 <= context < 1000000
    assert f"to fit    context 1000000 -> {context} tokens: " in done.stdout
    assert f"--ctx {context}" in done.stdout
    assert re.search(r"1000000 +\(\d+ MiB\)", done.stdout)


def test_strict_and_what_fits_nowhere_end_with_13(model: Path) -> None:
    strict = run(model, "--ram", "300M", "--ctx", "1000000", "--strict")
    assert strict.returncode == 13
    assert "it does not fit" in strict.stdout
    assert re.search(r"error: the model needs .* for 1000000 tokens.*; this fits: --ctx \d+ --batch 128$", strict.stderr)
    nowhere = run(model, "--ram", "100M", "--json")
    assert nowhere.returncode == 13
    report = json.loads(nowhere.stdout)
    assert (report["fits"], report["plan"], report["commands"]) == (False, None, [])
    assert report["problem"] in nowhere.stderr


def test_a_checkpoint_is_planned_without_quantizing_it(tmp_path: Path) -> None:
    from tinyedge.cli.models import demo_checkpoint

    report = planned(demo_checkpoint(), "-t", "Q8_0", "--board", "rpi5")
    assert report["type"] == "Q8_0"
    quantize, start = report["commands"]
    assert quantize.endswith("-t Q8_0 -o demo-Q8_0.gguf")
    assert start.startswith("tinyedge run demo-Q8_0.gguf --ctx ")
    assert not list(tmp_path.iterdir())
    assert planned("demo")["commands"][0].startswith("tinyedge run demo ")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--ram", "many"], 2, "is not a size of memory"),
        (["--board", "native"], 2, "plan on that machine, without --board"),
        (["--board", "aarch64"], 2, "say how much with --ram"),
        (["--board", "rpi44"], 18, "did you mean"),
        (["--kv", "q3_k"], 2, "the KV type is one of"),
        (["--kv", "q4_0", "--flash-attn", "off"], 2, "needs flash attention"),
        (["--rope-scale", "2"], 2, "needs a kind of RoPE scaling"),
        (["--backend", "cuda", "--board", "rpi5"], 12, "has no cuda device to plan with"),
        (["--ctx", "1"], 2, "--ctx"),
    ],
)
def test_wrong_usage_is_one_sentence_and_a_code(model: Path, arguments: list[str], code: int, words: str) -> None:
    done = run(model, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr.replace("\n", " ")


def test_a_model_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\x03")
    assert run(tmp_path / "broken.gguf").returncode == 11
    assert run(tmp_path / "nothing").returncode == 16


def test_the_name_of_a_model_cannot_drive_the_terminal(tmp_path: Path) -> None:
    parts = tiny_parts()
    parts.set("general.name", "str", b"\x1b]0;owned\x07")
    done = run(write(tmp_path / "evil.gguf", parts))
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert r"\x1b]0;owned\x07" in done.stdout
