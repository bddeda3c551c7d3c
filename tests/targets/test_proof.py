"""The proof of a wheel: what is judged how on literal reports, and whole proofs of the real wheels under emulation."""

from __future__ import annotations

import base64
import json
import math
import platform
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_wheels import write_wheel

from tinyedge.errors import NotEmulatedError, WheelError
from tinyedge_targets import emulation, trial, trial_checks
from tinyedge_targets.boards import find_board, find_boards
from tinyedge_targets.proof import Proof, cpus_of, prove
from tinyedge_targets.trial_checks import Expected, Results, judge, read_results
from tinyedge_targets.trials import Trial

ARM64 = "aarch64-linux-gnu"
VOCABULARY = 3


def silent(*_: object) -> None:
    """Progress that nobody watches."""


def logits_of(rows: list[list[float]]) -> str:
    return base64.b64encode(b"".join(struct.pack("<3f", *row) for row in rows)).decode()


def results(shift: float = 0.0, **changes: dict[str, Any]) -> Results:
    """A trial's results in which all is well, the logits of one token moved by `shift`; `changes` replace whole steps."""
    rows = [[1.0 + shift, 2.0, 3.0]] * trial.POSITIONS
    found: Results = {
        "library": {
            "system_info": "CPU : NEON = 1",
            "mapped": ["libggml-cpu-armv8.0_1.so", "libggml.so"],
            "features": ["asimd"],
        },
        "kernels": {"errors": {"Q4_0": [0.097, 0.098], "Q8_0": [0.006, 0.0063]}},
        "text": {"text": "there was a king", "tokens": 16},
        "quantize": {"bytes": 1000, "expected_bytes": 1000, "differing": 4},
        "plain": {"text": "a"},
    }
    found |= {f"logits {name}": {"vocabulary": VOCABULARY, "logits": logits_of(rows)} for name in trial.TYPES}
    return found | changes


EXPECTED = Expected(
    variant="armv8.0_1", variants=("armv8.0_1", "armv8.2_2"), features=("asimd", "aes", "crc32"), reference=results()
)


def verdicts(step: str, found: Results, failure: str = "") -> dict[str, bool]:
    return {check.name: check.passed for check in judge(step, found, EXPECTED, failure)}


@pytest.mark.parametrize("step", ["library", "kernels", "logits", "text", "quantize", "plain"])
def test_a_report_as_it_should_be_passes(step: str) -> None:
    assert all(verdicts(step, results()).values())


@pytest.mark.parametrize(
    ("step", "report", "failing"),
    [
        ("library", {"system_info": "", "mapped": ["libggml-cpu-armv8.2_2.so"], "features": ["asimd"]}, "CPU module"),
        (
            "library",
            {"system_info": "", "mapped": ["libggml-cpu-armv8.0_1.so", "libggml-cpu-armv8.2_2.so"], "features": ["asimd"]},
            "CPU module",
        ),
        ("library", {"system_info": "", "mapped": [], "features": ["asimd"]}, "CPU module"),
        (
            "library",
            {"system_info": "", "mapped": ["libggml-cpu-armv8.0_1.so"], "features": ["asimd", "asimddp"]},
            "CPU features",
        ),
        ("library", {"system_info": "", "mapped": ["libggml-cpu-armv8.0_1.so"], "features": []}, "CPU features"),
        ("kernels", {"errors": {"Q4_0": [0.1, 0.098]}}, "quantization kernels"),
        ("kernels", {"errors": {"Q4_0": [math.nan, 0.098]}}, "quantization kernels"),
        ("text", {"text": " ", "tokens": 16}, "demo model"),
        ("quantize", {"bytes": 1000, "expected_bytes": 1000, "differing": 11}, "quantizes the demo"),
        ("quantize", {"bytes": 999, "expected_bytes": 1000, "differing": 0}, "quantizes the demo"),
        ("plain", {"text": ""}, "plain llama_cpp.Llama"),
    ],
)
def test_what_is_wrong_fails_the_check_of_its_name(step: str, report: dict[str, Any], failing: str) -> None:
    found = verdicts(step, results(**{step: report}))
    assert [name for name, passed in found.items() if not passed] == [failing]


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"system_info": 1, "mapped": 7, "features": 8},
        {"errors": []},
        {"errors": {"Q4_0": 1}},
        {"errors": {"Q4_0": [1, 0]}},
        {"errors": {}},
        {"text": None, "tokens": "many"},
        {"bytes": 0, "expected_bytes": 0, "differing": 0},
        {"logits": "!", "vocabulary": 3},
        {"logits": logits_of([[1, 2, 3]]), "vocabulary": 10**400},
        {"logits": logits_of([[math.nan, 2, 3]] * trial.POSITIONS), "vocabulary": 3},
    ],
)
@pytest.mark.parametrize("step", ["library", "kernels", "logits Q8_0", "text", "quantize", "plain"])
def test_a_strange_report_is_a_failed_check_and_no_exception(step: str, report: dict[str, Any]) -> None:
    found = verdicts(step.partition(" ")[0], results(**{step: report}))
    assert not all(found.values())


def test_lines_that_are_not_ours_are_passed_over() -> None:
    text = f"noise\n{trial.MARK}not json\n{trial.MARK}[1]\n{trial.MARK}{'[' * 100_000}\n" + trial.MARK
    text += json.dumps({"step": "plain", "text": "x"}) + f'\n{trial.MARK}{{"step": 4}}\n'
    assert read_results(text) == {"plain": {"step": "plain", "text": "x"}}


def test_a_step_that_did_not_happen_is_told_by_how_the_process_ended() -> None:
    found = results()
    del found["logits Q4_0"]
    (check,) = judge("logits", found, EXPECTED, "built for a newer CPU: illegal instruction (exit 132)")
    assert (check.name, check.passed) == ("logits", False)
    assert check.detail == "built for a newer CPU: illegal instruction (exit 132)"


def test_the_divergence_is_that_of_the_definition() -> None:
    random = np.random.default_rng(3)
    p, q = random.normal(size=(2, 5, 50)) * 3
    for ours, theirs, found in zip(p, q, trial_checks.divergence(p, q + 7.0), strict=True):
        first = [math.exp(x) / sum(map(math.exp, ours)) for x in ours]
        second = [math.exp(x) / sum(map(math.exp, theirs)) for x in theirs]
        assert found == pytest.approx(sum(a * math.log(a / b) for a, b in zip(first, second, strict=True)), rel=1e-9)


@pytest.mark.parametrize(("shift", "passed"), [(0.0, True), (0.05, True), (0.3, False)])
def test_logits_may_differ_within_the_bound_only(shift: float, passed: bool) -> None:
    found = results(shift)
    worst = max(mean for mean, _ in trial_checks.divergences(found, results()).values())
    assert (worst <= trial_checks.MEAN_DIVERGENCE) == passed
    assert verdicts("logits", found) == {"logits": passed}


def test_a_wheel_for_no_board_in_particular_is_tried_on_every_cpu_of_its_kind() -> None:
    assert {"cortex-a53", "cortex-a72", "cortex-a76", "max"} <= set(cpus_of(ARM64, ()))
    assert cpus_of(ARM64, [find_board("rpi4"), find_board("cm4")]) == ("cortex-a72",)
    assert cpus_of("arm-linux-gnueabihf", ()) == ("cortex-a7",)
    assert cpus_of("aarch64-macos", ()) == ()


def test_a_file_that_is_no_wheel_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "llama_cpp_python-0.3.36-py3-none-manylinux2014_aarch64.whl"
    path.write_bytes(b"not a zip")
    with pytest.raises(WheelError):
        prove(path, progress=silent)


def test_a_wheel_that_nothing_here_can_run_is_told_so(tmp_path: Path) -> None:
    tag = "py3-none-win_amd64"
    proof = prove(write_wheel(tmp_path, {"llama_cpp/lib/llama.dll": b"MZ"}, tag), progress=silent)
    assert not proof.emulated
    assert "no emulator" in proof.reason
    assert proof.to_json()["reason"] == proof.reason


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a wheel tagged linux_* is for Linux")
@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os; os.kill(os.getpid(), 11)", "crashed: segmentation fault (exit 139)"),
        ("import os; os.kill(os.getpid(), 4)", "built for a newer CPU: illegal instruction (exit 132)"),
        ("import os; os._exit(0)", "the trial ended without a word on it"),
        (f'print({trial.MARK!r} + \'{{"step": "library"}}\'); import os; os._exit(0)', "its report cannot be read (KeyError)"),
    ],
)
def test_a_wheel_made_for_this_machine_runs_in_a_process_of_its_own(program: str, words: str, tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, {"llama_cpp/llama_cpp.py": program.encode()}, f"py3-none-linux_{platform.machine()}")
    proof = prove(wheel, progress=silent)
    assert [each.cpu for each in proof.trials] == ["native"]
    assert not proof.passed
    assert proof.trials[0].failure == f"loads: {words}"


def proof_of(wheel: Path, names: str) -> Proof:
    """The proof for those boards; skips where nothing can be emulated."""
    proof = prove(wheel, find_boards(names) if names else (), progress=silent)
    if not proof.emulated:
        pytest.skip(proof.reason)
    json.dumps(proof.to_json(), allow_nan=False)
    return proof


def trial_on(proof: Proof, cpu: str) -> Trial:
    (found,) = (each for each in proof.trials if each.cpu == cpu)
    return found


@pytest.mark.emulation
def test_the_universal_wheel_is_proven_on_every_kind_of_cpu(universal_wheel: Path) -> None:
    proof = proof_of(universal_wheel, "aarch64")
    assert proof.failures == ()
    assert {each.cpu: each.variant for each in proof.trials} == {
        "cortex-a53": "armv8.0_1",
        "cortex-a72": "armv8.0_1",
        "cortex-a76": "armv8.2_2",
        "max": "armv9.2_2",
    }


@pytest.mark.emulation
def test_the_32_bit_wheel_is_proven(armv7_wheel: Path) -> None:
    proof = proof_of(armv7_wheel, "armv7")
    assert proof.failures == ()
    assert [each.cpu for each in proof.trials] == ["cortex-a7"]


@pytest.mark.emulation
def test_a_wheel_for_a_newer_cpu_is_proven_there_and_fails_on_an_older_one(rpi5_single_wheel: Path) -> None:
    proof = proof_of(rpi5_single_wheel, "rpi4,rpi5")
    assert not proof.passed
    assert trial_on(proof, "cortex-a76").failure == ""
    assert "built for a newer CPU: illegal instruction (exit 132)" in trial_on(proof, "cortex-a72").failure


@pytest.mark.emulation
def test_without_an_emulator_a_sound_wheel_passes_by_its_files_and_is_told_unproven(
    universal_wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_triple: str, _python: str) -> emulation.Root:
        raise NotEmulatedError("no emulator is here", "install one")

    monkeypatch.setattr(emulation, "prepare", missing)
    proof = prove(universal_wheel, find_boards("rpi4"), progress=silent)
    assert (proof.passed, proof.emulated, proof.trials) == (True, False, ())
    assert (proof.reason, proof.remedy) == ("no emulator is here", "install one")
    assert "not emulated" in proof.verdict


@pytest.fixture(scope="module")
def installed(universal_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tinyedge and all it needs as they are installed on a Raspberry Pi 4: real ARM wheels, unpacked into one folder."""
    from tinyedge.errors import BuildError
    from tinyedge_targets.board_python import board_python
    from tinyedge_targets.dependencies import download_wheels
    from tinyedge_targets.own_wheel import build_own_wheel

    folder = tmp_path_factory.mktemp("installed")
    own = build_own_wheel(tmp_path_factory.mktemp("own"))
    try:
        wheels = download_wheels(
            board_python(find_board("rpi4"), "3.11"), ["tinyedge-llm"], [own, universal_wheel], folder / "wheels"
        )
    except BuildError as error:
        pytest.skip(f"no package index: {error}")
    for wheel in (*wheels, own, universal_wheel):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "site")
    return folder / "site"


def tinyedge_on(cpu: str, site: Path, folder: Path, *arguments: str) -> emulation.Finished:
    try:
        root = emulation.prepare(ARM64)
    except NotEmulatedError as error:
        pytest.skip(str(error))
    done = emulation.run(root, cpu, ["-m", "tinyedge", *arguments], folder=folder, env={"PYTHONPATH": str(site)}, timeout=600)
    assert done.failure == "", done.stderr
    return done


@pytest.mark.emulation
@pytest.mark.parametrize("cpu", ["cortex-a72", "cortex-a76"])
def test_tinyedge_runs_the_demo_there(cpu: str, installed: Path, tmp_path: Path) -> None:
    """`run demo` quantizes the checkpoint first, then generates: the whole program on that CPU."""
    done = tinyedge_on(
        cpu, installed, tmp_path, "run", "demo", "-p", "The king", "-n", "16", "--temp", "0", "--threads", "1", "--json"
    )
    report = json.loads(done.stdout)
    assert report["generated_tokens"] == 16
    assert "libc" not in done.stderr


@pytest.mark.emulation
def test_tinyedge_quantizes_there_what_it_quantizes_here(installed: Path, tmp_path: Path) -> None:
    """F16 to the byte; k-quants but for near-ties in the search for scales, which the order of additions decides."""
    import tinyedge
    from tinyedge_quantize.convert import convert

    checkpoint = Path(tinyedge.__file__).parent / "demo"
    for name, bound in (("F16", 0.0), ("Q8_0", 0.0), ("Q4_K_M", trial_checks.DIFFERING_BYTES)):
        here, there = tmp_path / f"{name}-here.gguf", tmp_path / f"{name}-there.gguf"
        convert(checkpoint, here, name)
        tinyedge_on("cortex-a72", installed, tmp_path, "quantize", str(checkpoint), "-t", name, "-o", str(there))
        ours, theirs = (np.frombuffer(path.read_bytes(), np.uint8) for path in (here, there))
        assert len(ours) == len(theirs)
        assert np.count_nonzero(ours != theirs) <= bound * len(ours), name


@pytest.mark.emulation
def test_tinyedge_devices_names_the_cpu_that_is_emulated(installed: Path, tmp_path: Path) -> None:
    for cpu, dotprod in (("cortex-a72", False), ("cortex-a76", True)):
        report = json.loads(tinyedge_on(cpu, installed, tmp_path, "devices", "--json").stdout)
        assert report["cpu"]["architecture"] == "aarch64"
        assert report["cpu"]["emulated"] is True
        assert ("asimddp" in report["cpu"]["features"]) == dotprod
        assert report["verdict"]["state"] == "fits"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a wheel tagged linux_* is for Linux")
def test_no_wheel_stands_in_for_the_trial_and_any_report_is_json(tmp_path: Path) -> None:
    told = [{"step": step, "tokens_per_s": float("nan")} for step in ("library", "kernels", "text", "quantize", "plain")]
    told += [{"step": "logits", "type": name} for name in trial.TYPES]
    lines = "".join(f"{trial.MARK}{json.dumps(each)}\n" for each in told)
    files = {
        "llama_cpp/llama_cpp.py": f"import os; print({lines!r}, flush=True); os._exit(0)".encode(),
        "tinyedge_targets/__init__.py": b"",
        "tinyedge_targets/trial.py": b"import os; os._exit(77)",
    }
    proof = prove(write_wheel(tmp_path, files, f"py3-none-linux_{platform.machine()}"), progress=silent)
    assert not proof.passed
    assert not any("77" in failure for failure in proof.failures)
    json.dumps(proof.to_json(), allow_nan=False)
