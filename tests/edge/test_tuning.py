"""What `tune` decides: on a made-up machine with a made-up clock, then on a real model."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_gguf import tiny_parts, write

from tinyedge import Request, tuned
from tinyedge.backends import choose, this_machine
from tinyedge.gguf_file import read_gguf
from tinyedge.load_plan import Setting
from tinyedge.model_facts import ModelFacts, describe_model
from tinyedge.tuning import GENERATION, PROMPT, SettingRefused, Stage, tune, usual_stages

COMMAND = Path(sys.executable).with_name("tinyedge")
DEFAULT = Setting(threads=4, batch_threads=4, batch=512)


class MadeUpMachine:
    """Speeds by a rule, with noise; every sample takes a second."""

    def __init__(self, rule: Callable[[Setting, str], float], noise: float = 0.0, seed: int = 0) -> None:
        self.rule, self.noise, self.draw = rule, noise, random.Random(seed)
        self.now = 0.0
        self.samples: list[tuple[Setting, str]] = []

    def measure(self, setting: Setting, test: str) -> float:
        self.samples.append((setting, test))
        self.now += 1.0
        return self.rule(setting, test) * self.draw.uniform(1 - self.noise, 1 + self.noise)

    def clock(self) -> float:
        return self.now


def stages(cores: int = 4) -> tuple[Stage, ...]:
    everything = tuple(range(cores))
    return usual_stages(
        logical=cores, physical=cores, performance=cores, performance_cpus=everything, allowed=everything, prompt_tokens=512,
        can_lock=False,
    )  # fmt: skip


def found(machine: MadeUpMachine, budget: float = 1000.0) -> tuple[Setting, dict[str, float], bool]:
    result = tune(DEFAULT, stages(), machine.measure, machine.clock, budget)
    return result.winner, result.gains, result.complete


def test_the_faster_number_of_threads_wins() -> None:
    """A machine on which another program uses one of the four cores."""
    machine = MadeUpMachine(lambda setting, _: 10.0 if setting.threads == 3 else 5.0)
    winner, gains, complete = found(machine)
    assert winner == replace(DEFAULT, threads=3)
    assert gains == {PROMPT: 2.0, GENERATION: 2.0}
    assert complete


def test_several_things_are_tuned_one_after_the_other() -> None:
    def rule(setting: Setting, test: str) -> float:
        if test == PROMPT:
            return 100.0 * (2.0 if setting.batch == 128 else 1.0) * (1.5 if setting.batch_threads == 3 else 1.0)
        return 10.0 * (1.2 if setting.affinity else 1.0) * (1.1 if setting.flash == "off" else 1.0)

    winner, gains, _ = found(MadeUpMachine(rule))
    assert winner == replace(DEFAULT, batch=128, batch_threads=3, affinity=(0, 1, 2, 3), flash="off")
    assert gains == pytest.approx({PROMPT: 3.0, GENERATION: 1.32})


@pytest.mark.parametrize("seed", range(30))
def test_noise_alone_never_takes_anything_slower(seed: int) -> None:
    """30 machines on which every setting is the same or worse, with samples 15 % off: the default, or one as fast."""

    def rule(setting: Setting, _test: str) -> float:
        return 10.0 if setting.threads >= 3 and setting.flash == "auto" else 9.0

    machine = MadeUpMachine(rule, noise=0.15, seed=seed)
    winner, _, _ = found(machine)
    assert rule(winner, GENERATION) == 10.0


def test_what_speeds_the_prompt_and_slows_generation_is_not_kept() -> None:
    machine = MadeUpMachine(lambda setting, test: 10.0 + (5 if setting.batch == 64 else 0) * (1 if test == PROMPT else -1))
    winner, gains, _ = found(machine)
    assert winner == DEFAULT
    assert gains[GENERATION] < 1.0 < gains[PROMPT]


def test_kv_types_are_shown_but_never_taken() -> None:
    machine = MadeUpMachine(lambda setting, _: 20.0 if setting.kv_type == "Q8_0" else 10.0)
    result = tune(DEFAULT, stages(), machine.measure, machine.clock, 1000.0)
    assert result.winner == DEFAULT
    row = next(row for row in result.rows if row.label == "Q8_0")
    assert (row.ratio, row.taken) == (2.0, False)
    assert "changes the text" in row.note


def test_a_refused_setting_is_a_row_with_the_reason() -> None:
    def rule(setting: Setting, _test: str) -> float:
        if setting.flash == "off":
            raise SettingRefused("no memory for it now")
        return 10.0

    result = tune(DEFAULT, stages(), MadeUpMachine(rule).measure, lambda: 0.0, 1000.0)
    assert [row.note for row in result.rows if row.label == "off"] == ["no memory for it now"]
    assert result.winner == DEFAULT


def test_it_ends_within_the_budget_and_says_what_it_did_not_try() -> None:
    machine = MadeUpMachine(lambda setting, _: float(setting.threads))
    result = tune(DEFAULT, stages(), machine.measure, machine.clock, 20.0)
    assert machine.now <= 25.0
    assert not result.complete


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model") / "tiny.gguf", tiny_parts())


@pytest.fixture
def facts(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelFacts:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return describe_model(read_gguf(model))


def test_what_is_kept_is_used_where_nothing_else_was_asked_for(facts: ModelFacts) -> None:
    machine = this_machine()
    setting = Setting(threads=1, batch_threads=2, batch=64, flash="off", affinity=(0,), mmap=False)
    tuned.keep(facts, setting, {PROMPT: 1.1, GENERATION: 1.2})
    assert tuned.kept(facts) == setting
    plan = tuned.tuned_plan(facts, Request(), machine)
    assert (plan.threads, plan.batch_threads, plan.batch, plan.flash, plan.affinity, plan.mmap) == (
        1,
        2,
        64,
        "off",
        (0,),
        False,
    )
    assert plan.reason.endswith(
        "; tuned: 2 threads for the prompt, bound to CPUs 0, flash attention off, weights read, not mapped, batch 64"
    )
    assert "1 thread (tuned); context" in plan.reason
    asked = tuned.tuned_plan(facts, Request(threads=3, batch=32, flash="on", mlock=True), machine)
    assert (asked.threads, asked.batch_threads, asked.batch, asked.flash, asked.mlock) == (3, None, 32, "on", True)
    assert "tuned" not in asked.reason
    quantized = tuned.tuned_plan(facts, Request(kv_type="Q8_0"), machine)
    assert quantized.flash == "auto"  # a quantized cache needs flash attention
    tuned.forget(facts)
    assert tuned.tuned_plan(facts, Request(), machine) == choose(facts, Request(), machine)


def test_another_shape_or_library_has_settings_of_its_own(facts: ModelFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned.keep(facts, DEFAULT, {})
    assert tuned.kept(replace(facts, layers=3)) is None
    assert tuned.kept(replace(facts, name="a fine-tune")) == DEFAULT
    monkeypatch.setattr(tuned, "package_version", lambda: "0.0.1")
    assert tuned.kept(facts) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda _: "[]",
        lambda _: "",
        lambda _: '{"format": 1, "settings": 7}',
        lambda text: text.replace('"threads": 4', '"threads": 4000'),
        lambda text: text.replace('"threads": 4', '"threads": "4"'),
        lambda text: text.replace('"affinity": []', '"affinity": [-1]'),
        lambda text: text.replace('"affinity": []', '"affinity": 7'),
        lambda text: text.replace('"F16"', '"F17"'),
        lambda text: text.replace('"format": 1', '"format": 99'),
    ],
)
def test_a_damaged_file_is_as_none(facts: ModelFacts, damage: Callable[[str], str]) -> None:
    path = tuned.keep(facts, DEFAULT, {})
    assert path is not None
    path.write_text(damage(path.read_text()))
    assert tuned.kept(facts) is None
    tuned.keep(facts, DEFAULT, {})
    assert tuned.kept(facts) == DEFAULT


def test_the_command_measures_shows_and_keeps(model: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}

    def tinyedge(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [str(COMMAND), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)

    done = tinyedge("tune", model, "--seconds", "8", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["seconds"] < 30
    assert {row["stage"] for row in report["rows"]} >= {"threads", "threads for the prompt"}
    assert report["faster"] == (report["winner"] != report["default"])
    assert (tmp_path / "tinyedge/tuned.json").exists() == report["faster"]
    tuned_run = tinyedge("run", model, "-p", "ab", "-n", "3", "--temp", "0")
    assert ("; tuned: " in tuned_run.stderr) == report["faster"]
    table = tinyedge("tune", model, "--seconds", "5", "--dry-run")
    assert table.stdout.startswith("| what ")
    assert tinyedge("tune", model, "--forget").returncode == 0
    plain = tinyedge("run", model, "-p", "ab", "-n", "3", "--temp", "0")
    assert "tuned" not in plain.stderr
    assert plain.stdout == tuned_run.stdout
