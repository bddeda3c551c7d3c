"""boards.toml and who reads it: facts of a few rows, rules that all rows keep, names people type, and the command."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict

import pytest
import typer
from typer.testing import CliRunner

from tinyedge.advice import SHAPES
from tinyedge.cli.boards import boards as boards_command
from tinyedge.cli.plan import _answer, _places
from tinyedge.cli.plan_report import PlannedModel
from tinyedge.errors import BoardError
from tinyedge.load_plan import LoadPlan, Request
from tinyedge_quantize.recipes import RECIPES, ModelShape, choose_types
from tinyedge_targets.boards import Board, boards, emulated_cpu, find_board, find_boards, read_catalogue

app = typer.Typer()
app.command()(boards_command)

ASKED_FOR = (
    "rpizero2w rpi3 rpi4 rpi5 rpi400 rpi500 cm4 cm5 rpizero2w-32 rpi3-32 rpi4-32 rpi5-32 rpi400-32 rpi500-32 cm4-32 cm5-32 "
    "rk3588 odroid-n2 beaglebone-ai64 beagleplay jetson-nano jetson-orin aarch64 armv7 mac-m1 mac-m2 mac-m3 mac-m4 "
    "x86-64-v2 x86-64-v3 x86-64-v4 cuda-laptop native"
)
# What decides between ggml's kernels, in the kernel's words.
DECISIVE = "asimd asimddp fphp asimdhp sve sve2 i8mm sme neon vfpv4 sse4_2 avx avx2 f16c fma bmi2 avx512f"
# ggml/src/CMakeLists.txt: the CPU variants for Linux on ARM, and the words that each of their features needs.
VARIANTS = {
    "armv8.0_1": "",
    "armv8.2_1": "dotprod",
    "armv8.2_2": "dotprod fp16",
    "armv8.2_3": "dotprod fp16 sve",
    "armv8.6_1": "dotprod fp16 sve i8mm",
    "armv8.6_2": "dotprod fp16 sve i8mm sve2",
    "armv9.2_1": "dotprod fp16 sve i8mm sme",
    "armv9.2_2": "dotprod fp16 sve i8mm sve2 sme",
}
# ggml-cpu/arch/arm/cpu-feats.cpp: the score of a feature is 1 << its place here.
SCORED = {
    "dotprod": (1, {"asimddp"}),
    "fp16": (2, {"fphp", "asimdhp"}),
    "sve": (3, {"sve"}),
    "i8mm": (4, {"i8mm"}),
    "sve2": (5, {"sve2"}),
    "sme": (6, {"sme"}),
}


def run(*arguments: str, columns: int = 120) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": str(columns)}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def each_board() -> list[object]:
    return [pytest.param(board, id=board.name) for board in boards()]


def test_the_boards_that_were_asked_for_are_there() -> None:
    assert set(ASKED_FOR.split()) <= {board.name for board in boards()}


def test_raspberry_pi_4() -> None:
    board = find_board("rpi4")
    assert (board.title, board.cores, board.cpu) == ("Raspberry Pi 4 Model B", "4x Cortex-A72 1.8 GHz", "cortex_a72")
    assert (board.triple, board.toolchain, board.layout) == ("aarch64-linux-gnu", "zig", "variants")
    assert (board.emulate, board.features) == (("cortex-a72",), ("asimd", "crc32"))  # no aes: Broadcom left it out
    assert (board.glibc, board.pythons, board.ram) == ("2.36", ("3.13", "3.11"), ("1G", "2G", "4G", "8G"))
    assert board.bandwidth == 12.8 and "3200 MT/s" in board.bandwidth_source
    assert (board.model, board.quantization, board.context) == ("TinyLlama-1.1B", "Q4_K_M", 2048)


def test_a_32_bit_row_differs_from_its_board_in_what_32_bits_change() -> None:
    wide, narrow = asdict(find_board("rpi5")), asdict(find_board("rpi5-32"))
    changed = {key for key in wide if wide[key] != narrow[key]}
    assert changed == {"name", "title", "aliases", "triple", "layout", "cpu", "emulate", "features", "os"}
    assert (narrow["triple"], narrow["layout"], narrow["cpu"]) == ("arm-linux-gnueabihf", "single", "cortex_a7")
    assert narrow["emulate"] == ("cortex-a7",) and narrow["features"][0] == "neon"


def test_what_does_not_fit_is_said_plainly() -> None:
    zero = find_board("zero 2 w")
    assert zero.model == "SmolLM2-135M" and "TinyLlama-1.1B fits in no type" in zero.note
    assert all(_planned("zero 2 w", "512M", "TinyLlama-1.1B", kind) is None for kind in ("Q4_K_M", "Q2_K"))
    three = find_board("rpi3")
    assert (three.quantization, three.context) == ("Q4_K_M", 2048)
    plan = _planned("rpi3", "1G", "TinyLlama-1.1B", "Q4_K_M")
    assert plan is not None and (plan.context, plan.batch) == (2048, 128) and "batch of 128 tokens" in three.note


def test_the_jetsons_say_how_to_get_a_python_and_cuda() -> None:
    nano, orin = find_board("jetson-nano"), find_board("jetson orin nano")
    assert nano.glibc == "2.27" and nano.python() == "3.11" and "uv python install 3.11" in nano.note
    assert orin.glibc == "2.35" and orin.pythons == ("3.10",) and "-DGGML_CUDA=on" in orin.note


def test_macs_and_cuda_laptops_are_built_where_they_are() -> None:
    for name in ("mac-m1", "mac-m2", "mac-m3", "mac-m4"):
        board = find_board(name)
        assert (board.toolchain, board.emulate, board.cmake) == ("native", (), ("-DGGML_METAL=ON",))
    cuda = find_board("cuda-laptop")
    assert (cuda.triple, cuda.toolchain, cuda.cmake) == ("native", "native", ("-DGGML_CUDA=on",))


@pytest.mark.parametrize("board", each_board())
def test_the_bandwidth_is_what_its_source_makes_it(board: Board) -> None:
    if board.bandwidth is None:
        assert board.bandwidth_source.startswith("differs from")
        return
    found = re.match(r"(\d+) bit x (\d+) MT/s", board.bandwidth_source)
    assert found is not None
    assert board.bandwidth == pytest.approx(int(found[1]) * int(found[2]) / 8000, abs=0.06)


@pytest.mark.parametrize("board", each_board())
def test_what_is_suggested_fits_in_memory(board: Board) -> None:
    """In every memory it is sold with, by what `tinyedge plan` computes for it."""
    if board.triple == "native":
        return
    for size in board.ram:
        plan = _planned(board.name, size, board.model, board.quantization)
        assert plan is not None and plan.context == board.context and plan.kv_type == "F16"
        assert plan.batch == 512 or "with a batch of 128 tokens" in board.note


def _planned(board: str, ram: str, model: str, kind: str) -> LoadPlan | None:
    shape = next(shape for shape in SHAPES if shape.name == model)
    types = choose_types(RECIPES[kind], shape.tensors, ModelShape(shape.layers, shape.heads, shape.kv_heads))
    wanted = PlannedModel(argument="", facts=shape.facts(kind, types))
    return _answer(wanted, Request(context=find_board(board).context), *_places(board, ram)).plan


@pytest.mark.parametrize("board", each_board())
def test_a_board_is_proven_on_processors_with_the_same_decisive_features(board: Board) -> None:
    decisive = set(DECISIVE.split())
    assert bool(board.emulate) == (board.toolchain == "zig" and "avx512f" not in board.features)
    for name in board.emulate:
        emulated = emulated_cpu(name)
        assert emulated.triple == board.triple
        if board.name != "aarch64":
            assert decisive.intersection(emulated.features) == decisive.intersection(board.features)


@pytest.mark.parametrize("name", sorted({name for board in boards() for name in board.emulate}))
def test_the_expected_variant_is_the_one_that_scores_highest(name: str) -> None:
    cpu = emulated_cpu(name)
    if cpu.triple != "aarch64-linux-gnu":
        assert cpu.variant == ""
        return
    scores = {
        variant: sum(1 << SCORED[feature][0] for feature in features.split())
        for variant, features in VARIANTS.items()
        if all(SCORED[feature][1] <= set(cpu.features) for feature in features.split())
    }
    assert cpu.variant == max(scores, key=lambda variant: scores[variant])


@pytest.mark.parametrize(
    ("triple", "machine"), [("aarch64-linux-gnu", "aarch64"), ("arm-linux-gnueabihf", "arm"), ("x86_64-linux-gnu", "x86_64")]
)
def test_qemu_knows_the_processors(triple: str, machine: str) -> None:
    qemu = shutil.which(f"qemu-{machine}-static") or shutil.which(f"qemu-{machine}")
    if qemu is None:
        pytest.skip(f"no qemu-{machine}")
    known = subprocess.run(
        [qemu, "-cpu", "help"], capture_output=True, text=True, check=False
    ).stdout.split()  # it exits with 1
    names = {name for board in boards() for name in board.emulate if emulated_cpu(name).triple == triple}
    assert names and names <= set(known)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("rpi4", "rpi4"),
        ("Raspberry Pi 4", "rpi4"),
        ("raspberry pi 4 model b", "rpi4"),
        ("raspberrypi,4-model-b", "rpi4"),
        ("RPI-4", "rpi4"),
        ("pi5", "rpi5"),
        ("pi 5 ", "rpi5"),
        ("Raspberry Pi 5 Model B, 32 bit", "rpi5-32"),
        ("Orange Pi 5", "rk3588"),
        ("rock 5B", "rk3588"),
        ("rockchip,rk3588s", "rk3588"),
        ("ODROID-N2+", "odroid-n2"),
        ("BeagleBone AI-64", "beaglebone-ai64"),
        ("x86_64-v3", "x86-64-v3"),
        ("M2", "mac-m2"),
        ("armhf", "armv7"),
    ],
)
def test_names_as_people_type_them(typed: str, name: str) -> None:
    assert find_board(typed).name == name


@pytest.mark.parametrize(
    ("typed", "near"),
    [("rpi6", "rpi4"), ("rk3558", "rk3588"), ("jetson", "jetson-nano"), ("orangepi", "rk3588"), ("beagel play", "beagleplay")],
)
def test_an_unknown_name_gets_the_nearest_ones(typed: str, near: str) -> None:
    with pytest.raises(BoardError, match=f"no board is named '{typed}'") as caught:
        find_board(typed)
    assert "did you mean" in caught.value.remedy and near in caught.value.remedy
    assert "`tinyedge boards` lists them all" in caught.value.remedy


@pytest.mark.parametrize("typed", ["", " ", "???", "z" * 100_000, "\x1b[2J\n", "wristwatch"])
def test_nonsense_is_answered_in_one_short_line(typed: str) -> None:
    with pytest.raises(BoardError) as caught:
        find_board(typed)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200
    assert "did you mean" not in str(caught.value)


def test_a_list_of_boards_keeps_its_order_and_drops_repetitions() -> None:
    found = find_boards("rk3588, rpi5,pi 5,rpi4,RPI5")
    assert [board.name for board in found] == ["rk3588", "rpi5", "rpi4"]
    for wrong in ("rpi4,", ",", "rpi4,nothing-like-it"):
        with pytest.raises(BoardError):
            find_boards(wrong)


def test_the_python_of_a_board() -> None:
    board = find_board("rpi4")
    assert [board.python(), board.python("3.11"), board.python(" 3.11.2 ")] == ["3.13", "3.11", "3.11"]
    with pytest.raises(BoardError, match=r"rpi4 has no Python 3\.12 \(Raspberry Pi OS 13") as caught:
        board.python("3.12")
    assert caught.value.remedy == "use --python 3.13 or --python 3.11"
    for wrong in ("", "3", "311", "python3", "3.11-dev", "2.7", "3.1e1", "٣.١١", "3." + "1" * 10_000):
        with pytest.raises(BoardError, match="is not a version of Python") as caught:
            board.python(wrong)
        assert len(str(caught.value)) < 200


def test_a_machine_without_a_python_of_its_own_takes_any_that_tinyedge_runs_on() -> None:
    native = find_board("native")
    assert native.python() == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert native.python("3.14") == "3.14"
    with pytest.raises(BoardError, match=r"does not run on Python 3\.9"):
        native.python("3.9")


ROWS = """
[part.linux]
triple = "aarch64-linux-gnu"
toolchain = "zig"
layout = "variants"
glibc = "2.36"
pythons = ["3.11"]
features = ["asimd"]
emulate = ["cortex-a53"]

[board.one]
like = ["linux"]
title = "One"
aliases = ["first"]
cpu = "cortex_a53"
cores = "4x Cortex-A53"
os = "Debian 12"
ram = ["1G"]
bandwidth = 3.6
bandwidth_source = "a guess"
quantization = "Q4_K_M"
context = 1024

[board.two]
like = ["one"]
title = "Two"
ram = ["512M", "2G"]

[emulated.cortex-a53]
triple = "aarch64-linux-gnu"
features = ["asimd"]
variant = "armv8.0_1"
"""


def test_a_row_says_only_how_it_differs() -> None:
    catalogue = read_catalogue(ROWS)
    one, two = catalogue.boards["one"], catalogue.boards["two"]
    assert asdict(two) == asdict(one) | {"name": "two", "title": "Two", "aliases": (), "ram": ("512M", "2G")}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('triple = "aarch64-linux-gnu"\ntool', 'triple = "aarch64-linux-musl"\ntool', "one: triple: 'aarch64-linux-musl'"),
        ('toolchain = "zig"', 'toolchain = "gcc"', "one: toolchain: 'gcc'"),
        ('layout = "variants"', 'layout = "both"', "one: layout: 'both'"),
        ('glibc = "2.36"', 'glibc = "2"', "one: glibc: '2'"),
        ('glibc = "2.36"', "glibc = 2.36", "one: glibc: 2.36"),
        ('pythons = ["3.11"]', 'pythons = ["3.9"]', r"one: pythons: \('3.9',\)"),
        ('pythons = ["3.11"]', "pythons = []", r"one: pythons: \(\)"),
        ('pythons = ["3.11"]', 'pythons = "3.11"', "one: pythons: '3.11'"),
        ('emulate = ["cortex-a53"]', 'emulate = ["cortex-a5"]', r"one: emulate: \('cortex-a5',\)"),
        ('ram = ["1G"]', 'ram = ["1 GB"]', r"one: ram: \('1 GB',\)"),
        ("bandwidth = 3.6", "bandwidth = -3.6", "one: bandwidth: -3.6"),
        ("bandwidth = 3.6", 'bandwidth = "fast"', "one: bandwidth: 'fast'"),
        ("context = 1024", "context = true", "one: context: True"),
        ('quantization = "Q4_K_M"', 'quantization = "q4"', "one: quantization: 'q4'"),
        ('cpu = "cortex_a53"', 'cpu = "cortex-a53"', "one: cpu: 'cortex-a53'"),
        ('os = "Debian 12"', 'os = "Debian\\n12"', "one: os"),
        ('os = "Debian 12"\n', "", "one: os: 'missing'"),
        ('title = "Two"', 'title = "Two"\nprice = "5"', r"two: unknown fields: \['price'\]"),
        ('title = "Two"', 'title = "First"', "two: name, title or alias: 'first'"),
        ('like = ["one"]', 'like = ["three"]', "two: like: 'three'"),
        ('like = ["linux"]', 'like = ["linux", "two"]', "like: "),
        ("[part.linux]", "[part.one]", "one: name of a part and of a board"),
        ("[board.two]", "[boards.two]", "boards.toml: table"),
        ('triple = "aarch64-linux-gnu"\nfeatures', 'triple = "arm"\nfeatures', "cortex-a53: triple: 'arm'"),
        ('variant = "armv8.0_1"', "", "cortex-a53: variant: 'missing'"),
    ],
)
def test_a_wrong_row_is_named_with_its_field(old: str, new: str, message: str) -> None:
    assert ROWS.count(old) == 1
    with pytest.raises(ValueError, match=message):
        read_catalogue(ROWS.replace(old, new))


@pytest.mark.parametrize("columns", [100, 128])
def test_the_table_has_a_line_for_each_board_and_keeps_its_width(columns: int) -> None:
    lines = run(columns=columns).splitlines()
    assert max(map(len, lines)) <= columns
    starts = [line.split()[0] for line in lines if line]
    assert all(starts.count(board.name) == 1 for board in boards())
    assert next(line for line in lines if line.startswith("rpi5 ")).split() == [
        *("rpi5", "Pi", "5", "Model", "B", "4x", "A76", "fp16", "dotprod", "1-16G", "17.1", "Q4_K_M", "2048")
    ]
    assert "Raspberry Pi OS 13 (trixie) or 12 (bookworm), 64 bit: glibc 2.36, Python 3.13 or 3.11:" in lines


def test_one_board_is_shown_with_its_sources_and_its_command() -> None:
    output = run("Raspberry Pi 4", columns=100)
    for expected in (
        "name        rpi4 (also pi4, rpi4b, pi4b, raspberry pi 4)",
        "memory      1G, 2G, 4G, 8G; 12.8 GB/s: 32 bit x 3200 MT/s LPDDR4, theoretical (Raspberry Pi",
        "STREAM measured 5.6 (sci-pi.org.uk)",
        "run         TinyLlama-1.1B as Q4_K_M with a context of 2048",
        "proven on   qemu's cortex-a72 (variant armv8.0_1)",
        "note        With 1 GB it fits with a batch of 128 tokens",
        "wheel       tinyedge wheel --board rpi4",
    ):
        assert expected in output
    assert max(map(len, output.splitlines())) <= 100
    assert "proven on   nothing: static checks only" in run("x86-64-v4")


@pytest.mark.parametrize("board", each_board())
def test_every_board_can_be_shown(board: Board) -> None:
    assert f"tinyedge wheel --board {board.name}\n" in run(board.name)


def test_json_holds_every_field_of_every_board() -> None:
    report = json.loads(run("--json"))
    assert list(report) == ["boards"]
    assert report["boards"] == json.loads(json.dumps([asdict(board) for board in boards()]))
    one = json.loads(run("PI5", "--json"))
    assert one == next(row for row in report["boards"] if row["name"] == "rpi5")
    assert one["pythons"] == ["3.13", "3.11"] and one["bandwidth"] == 17.1 and one["context"] == 2048


def test_an_unknown_board_is_an_error_of_its_own() -> None:
    with pytest.raises(BoardError):
        run("wristwatch")


def test_reading_the_boards_loads_nothing_heavy() -> None:
    code = "import sys, tinyedge_targets.boards as b; b.boards(); print({'numpy', 'llama_cpp', 'rich'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
