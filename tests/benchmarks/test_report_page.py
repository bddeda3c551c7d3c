"""The page of a report: its figures, what it says is missing, and that nothing in a file gets out of its place."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure
from report_documents import document, quality_document, speed_document, speed_row, sweep_document, write_all

from tinyedge.errors import OutputError, ResultFileError
from tinyedge_bench.report.ceilings import ceiling_section
from tinyedge_bench.report.checked_values import number, numbers, text
from tinyedge_bench.report.drawing import png, svg
from tinyedge_bench.report.files import write_page, write_pictures
from tinyedge_bench.report.look import PALETTE
from tinyedge_bench.report.names import distinct_labels
from tinyedge_bench.report.page import page, plots, sections
from tinyedge_bench.report.page_parts import Link, decimal
from tinyedge_bench.report.placing import Spot
from tinyedge_bench.report.plots import Roofline, ScatterPlot, Strip, StripPlot
from tinyedge_bench.report.quality_sections import quality_sections
from tinyedge_bench.report.sources import Sources, read_sources
from tinyedge_bench.result_files import as_document
from tinyedge_bench.speed.compare import compare_peer

MARKUP = "</title></svg><script>alert(1)</script><img src=x onerror=alert(2)>"
PEERS = "tinyedge's speed ÷ the other engine's"
SWEPT = "Every type of the sweep; on the front: no other is both smaller and closer"
VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """The elements of a page, checked to be nested as they must, and the cells of its tables by caption."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.words: list[str] = []
        self.ids: list[str] = []
        self._rows: list[list[str]] = []
        self._text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        self.ids += [value or "" for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._rows = []
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th", "caption"):
            self._text = ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        self.ids += [value or "" for key, value in attrs if key == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self._rows[-1].append(self._text)
        if tag == "caption":
            self.tables[self._text] = self._rows

    def handle_data(self, data: str) -> None:
        self._text += data
        self.words.append(data)


def made(folder: Path, *documents: dict[str, Any], title: str = "Report") -> Page:
    paths = [folder / f"results-{i}.json" for i in range(len(documents))]
    for path, each in zip(paths, documents, strict=True):
        path.write_text(json.dumps(each))
    return Page(page(title, sections(read_sources(paths))))


def test_a_page_of_everything_needs_nothing_else(tmp_path: Path) -> None:
    found = made(tmp_path, speed_document(), quality_document(), sweep_document())
    tags = {tag for tag, _ in found.attributes}
    assert not tags & {"script", "img", "iframe", "object", "embed", "base", "form", "foreignObject", "image"}
    for tag, attributes in found.attributes:
        assert "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        if "href" in attributes and tag != "a":
            assert (attributes["href"] or "").startswith(("#", "data:,"))
    policies = [each["content"] for tag, each in found.attributes if each.get("http-equiv") == "Content-Security-Policy"]
    assert policies[0] is not None
    assert policies[0].startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")
    assert len(found.ids) == len(set(found.ids))
    references = {(each.get("href") or "")[1:] for tag, each in found.attributes if (each.get("href") or "").startswith("#")}
    assert references <= set(found.ids)


def test_figures_are_those_of_the_rows(tmp_path: Path) -> None:
    rows = [
        speed_row("a.gguf", 1, generate=128, samples_ts=[10.0, 12.5, 11.0], avg_ts=11.17, median_ts=11.0, stddev_ts=1.26),
        speed_row("a.gguf", 1, generate=128, samples_ts=[10.0, 9.9, 10.1], avg_ts=10.0, median_ts=10.0, engine="ollama"),
    ]
    found = made(tmp_path, document("speed", rows))
    cases = _table(found, "All cases, with llama-bench's names")
    assert cases[0]["median tokens/s"] == "11.00"
    assert cases[0]["mean ± sd"] == "11.17 ± 1.26"
    assert cases[0]["least–most"] == "10.00–12.50"
    (peer,) = _table(found, PEERS)
    # By hand: 10 / 10, 12.5 / 9.9 and 11 / 10.1, of which the middle is 1.089; the medians alone would say 1.100.
    assert (peer["engine"], peer["runs"], peer["ratio"]) == ("ollama 0.6.0", "3", "1.089")
    low, high = map(float, peer["95 % interval"].split("–"))
    assert 1.0 <= low <= 1.089 <= high <= 1.263
    assert any("With fewer than 5 runs an interval is narrower" in words for words in found.words)


def test_peers_are_compared_as_bench_compare_does(tmp_path: Path) -> None:
    value = speed_document()
    chance = random.Random(1)
    for row in value["results"]:
        row["samples_ts"] = [each * chance.uniform(0.5, 1.5) for each in row["samples_ts"]]
        row["samples_ns"] = [(row["n_prompt"] + row["n_gen"]) / each * 1e9 for each in row["samples_ts"]]
        row["median_ts"] = statistics.median(row["samples_ts"])
    found = made(tmp_path, value)
    rows = _table(found, PEERS)
    for engine in ("llama-bench", "ollama"):
        compared = compare_peer(tmp_path / "results-0.json", engine)
        told = [
            (f"{each.value:.3f}", f"{each.low:.3f}–{each.high:.3f}")
            for each in (*(c.ratio for c in compared.cases), compared.mean)
        ]
        assert [(row["ratio"], row["95 % interval"]) for row in rows if row["engine"].startswith(engine)] == told
    assert len(rows) == 6


def test_runs_that_are_not_as_many_are_not_in_rounds(tmp_path: Path) -> None:
    rows = [
        speed_row("a.gguf", 1, generate=128, samples_ts=[10.0, 12.0, 11.0], median_ts=11.0),
        speed_row("a.gguf", 1, generate=128, samples_ts=[10.0, 10.0], median_ts=10.0, engine="ollama"),
    ]
    found = made(tmp_path, document("speed", rows))
    (peer,) = _table(found, PEERS)
    assert (peer["ratio"], peer["runs"]) == ("1.100", "3, 2 (not in rounds)")
    assert any("Where the runs are not as many, it is the ratio of the medians." in words for words in found.words)


def test_files_of_one_name_are_told_by_their_folders(tmp_path: Path) -> None:
    paths = []
    for place in ("pi1/bench.json", "pi2/bench.json", "pi2/bench.jsonl.json", "eval.json"):
        paths.append(tmp_path / place)
        paths[-1].parent.mkdir(exist_ok=True)
        paths[-1].write_text(json.dumps(speed_document()))
    assert [name for name, _ in read_sources(paths).documents] == ["pi1/bench", "pi2/bench", "bench.jsonl", "eval"]
    shutil.copy(paths[0], tmp_path / "pi1" / "bench.txt")
    same_stem = [paths[0], tmp_path / "pi1" / "bench.txt"]
    assert [name for name, _ in read_sources(same_stem).documents] == ["bench.json", "bench.txt"]


def test_a_doubt_is_said_once_with_its_cases(tmp_path: Path) -> None:
    def rows(*doubted: int) -> list[dict[str, Any]]:
        doubt = "the speed fell by 6 %; let the board cool with --cool"
        return [
            speed_row("a.gguf", 9, generate=generate, warnings=[doubt] if generate in doubted else [])
            for generate in (16, 32, 64)
        ]

    found = made(tmp_path, document("speed", rows(16, 64)), document("speed", rows(16, 32, 64)))
    assert [words for words in found.words if "the speed fell" in words] == [
        "results-0: the speed fell by 6 %; let the board cool with --cool (tg16, tg64)",
        "results-1: the speed fell by 6 %; let the board cool with --cool (all 3 cases)",
    ]


def test_what_is_the_same_in_all_rows_is_told_once(tmp_path: Path) -> None:
    rows = [speed_row("a.gguf", 9, generate=generate) for generate in (16, 32)]
    found = made(tmp_path, document("speed", rows), sweep_document())
    assert "results" in found.tables["The machine of each file of results"][0]
    assert found.tables["All cases, with llama-bench's names"][0][:2] == ["test", "median tokens/s"]
    assert (
        "In all rows: results results-0, model a.gguf, weights, MiB 477, params, M 1,100, engine tinyedge 0.6.0, backend cpu, "
        "threads 4, KV F16, batch 2048/512."
    ) in found.words
    assert "In all rows: results results-1, base tinyllama-F16.gguf." in found.words


def test_the_base_is_the_first_type(tmp_path: Path) -> None:
    value = sweep_document()
    found = made(tmp_path, {**value, "base": {**value["results"][0], "type": "F16", "divergence": None}})
    assert [row["type"] for row in _table(found, SWEPT)][:2] == ["F16 (base)", "Q8_0"]


def test_accuracy_stays_on_its_axis_and_guessing_is_drawn() -> None:
    value = quality_document()
    for row in value["results"]:
        row["tasks"] = [{"task": "piqa", "questions": 3, "accuracy": 1.0, "accuracy_error": 0.0, "chance": 0.5}]
    (plot,) = quality_sections([("", as_document(value, Path("x.json")))])[2].plots
    figure = Figure()
    axes = figure.add_subplot()
    plot.draw(axes)
    low, high = axes.get_ylim()
    assert 0 <= low < 50
    assert high == 100
    assert [line.get_ydata()[0] for line in axes.get_lines() if line.get_gid() == "data-level"] == [50.0]
    assert "Dotted: what guessing gives (piqa 50 %)." in plot.description


@pytest.mark.parametrize("seed", range(4))
def test_names_stand_nearer_to_their_own_point_than_to_others(seed: int) -> None:
    """Five types in a tight row among others, in random places near each other: no name nearest to another's dot."""
    chance = random.Random(seed)
    spots = [Spot(name=f"Q{i}_K_M", x=2.4 + chance.uniform(0, 0.2), y=0.006 * chance.uniform(0.8, 1.2)) for i in range(5)]
    spots += [Spot(name="Q2_K", x=2.0, y=0.04), Spot(name="Q8_0", x=4.0, y=0.0002)]
    figure = Figure(figsize=(5, 320 / 72))
    axes = figure.add_subplot()
    ScatterPlot(name="a", title="t", description="d", x_label="x", y_label="y", spots=spots, log_y=True).draw(axes)
    figure.draw_without_rendering()
    scale = 72 / figure.dpi
    boxes = [text.get_window_extent() if text.arrow_patch is None else None for text in axes.texts]
    places = axes.transData.transform([(spot.x, spot.y) for spot in spots]) * scale
    assert [text.get_text() for text in axes.texts] == [spot.name for spot in spots]
    for i, box in enumerate(boxes):
        if box is not None:
            corners = [each * scale for each in (box.x0, box.x1, box.y0, box.y1)]
            away = [
                math.hypot(max(corners[0] - x, 0, x - corners[1]), max(corners[2] - y, 0, y - corners[3])) for x, y in places
            ]
            assert away.index(min(away)) == i, spots[i].name


def test_a_sweep_is_shown_with_llama_perplexitys_decimals(tmp_path: Path) -> None:
    found = made(tmp_path, sweep_document())
    rows = {row["type"]: row for row in _table(found, SWEPT)}
    assert rows["Q4_K_M"]["perplexity"] == "8.6230 ± 0.0520"
    assert rows["Q4_K_M"]["mean KL"] == "0.030500 ± 0.000762"
    assert rows["Q4_K_M"]["file, MiB"] == "637"
    assert (rows["Q4_0"]["on the front"], rows["IQ4_XS"]["on the front"]) == ("", "yes")


def test_a_point_of_the_roofline_is_flops_by_bytes() -> None:
    """By hand: a model of 500 MB and 1.1 G weights; 10 tokens/s read 5 GB/s and take 22 GFLOP/s, 4.4 FLOPs per byte.

    512 tokens in 512 batches read the file once for 1.024 TFLOPs: at 100 tokens/s and 200 GFLOP/s 2048 FLOPs per byte.
    """
    generation = speed_row("x", 1, generate=128, median_ts=10.0, bytes_per_s=5e9, model_n_params=1_100_000_000)
    prompt = speed_row("x", 1, prompt=512, median_ts=100.0, flops=200e9, model_size=500_000_000)
    ceilings = {"bandwidth": {"4": 6e9}, "matrix": {"cpu": {"4": {"F16": 300e9}}}}

    read = as_document(document("speed", [generation, prompt], ceilings=ceilings), Path("x.json"))
    (plot,) = ceiling_section([("", read)]).plots
    assert isinstance(plot, Roofline)
    assert (plot.bytes_per_s, plot.flops) == (6e9, [("F16", 300e9)])
    assert [(round(spot.x, 6), round(spot.y)) for spot in plot.spots] == [(4.4, 22_000_000_000), (2048.0, 200_000_000_000)]


def test_only_what_there_is_gets_a_section(tmp_path: Path) -> None:
    one = made(tmp_path, document("speed", [speed_row("a.gguf", 9, generate=16, temperature_c=None, clock_mhz=None)]))
    assert set(one.tables) == {"The machine of each file of results", "All cases, with llama-bench's names"}
    empty = made(tmp_path, document("speed", [], missing=[{"what": "pp512", "reason": "out of memory"}]))
    assert "pp512: out of memory" in empty.words
    assert list(empty.tables) == ["The machine of each file of results"]


def test_a_file_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    paths = write_all(tmp_path)
    old, junk, absent = tmp_path / "old.json", tmp_path / "junk.json", tmp_path / "absent.json"
    old.write_text(json.dumps({**speed_document(), "tinyedge": {"schema": 0, "kind": "speed"}}))
    junk.write_text("no results")
    sources = read_sources([old, *paths, junk, absent])
    assert [name for name, _ in sources.documents] == ["bench", "eval", "sweep"]
    assert len(sources.unreadable) == 3
    shown = Page(page("x", sections(sources)))
    assert any("old.json is of an older schema" in words for words in shown.words)
    assert any("absent.json cannot be read (No such file or directory)" in words for words in shown.words)


def test_nothing_to_read_is_the_first_error(tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text(json.dumps({**speed_document(), "tinyedge": {"schema": 0, "kind": "speed"}}))
    with pytest.raises(ResultFileError, match="older schema") as caught:
        read_sources([old, tmp_path / "absent.json"])
    assert caught.value.exit_code == 34


WORDS = [MARKUP, "$\\frac{1}{", "\x1b[2J\u202e\x00"]
HOSTILE = [*WORDS, math.nan, math.inf, 10**400, -1, 0, 1e-320, 2e-30, 9e29, 1e308, True, None, [], {}]


def _poisoned(value: Any, poison: Callable[[], Any]) -> Any:
    """`value` with every leaf replaced by what `poison` gives, structure kept."""
    if isinstance(value, dict):
        return {key: _poisoned(each, poison) for key, each in value.items()}
    if isinstance(value, list):
        return [_poisoned(each, poison) for each in value]
    return poison()


@pytest.mark.parametrize("seed", range(6))
def test_any_value_in_any_place_is_survived(seed: int) -> None:
    """Everywhere at once, and in some of a row's places while the rest is as it should be."""
    chance = random.Random(seed)
    for make, kept in ((speed_document, slice(0, 16, 5)), (quality_document, slice(3)), (sweep_document, slice(3))):
        whole = make()
        whole["results"] = whole["results"][kept]
        head = {key: whole[key] for key in ("tinyedge", "date")}
        some = [{key: chance.choice([*HOSTILE, *[each] * 30]) for key, each in row.items()} for row in whole["results"]]
        beside = {key: chance.choice(HOSTILE) for key in ("ceilings", "loads", "references") if key in whole}
        for changed in (
            {**_poisoned(whole, lambda: chance.choice(HOSTILE)), **head},
            {**whole, "results": [_poisoned(row, lambda: HOSTILE[seed]) for row in whole["results"]]},
            {**whole, **beside, "results": some},
        ):
            read = as_document(changed, Path("bench.json"))
            found = Page(page("x", sections(Sources((("", read),), ()))))
            assert not {"script", "img"} & {tag for tag, _ in found.attributes}
            assert not any("\x1b" in words or "\u202e" in words for words in found.words)


def test_hostile_names_are_shown_as_text(tmp_path: Path) -> None:
    rows = [speed_row(f"{MARKUP} $x${i}.gguf", 10, generate=16, threads=threads) for i in (1, 2) for threads in (1, 2)]
    found = made(tmp_path, document("speed", rows), title=MARKUP)
    assert any(words.startswith("</title></svg><script>alert(1)") for words in found.words)
    assert found.words.count(MARKUP) == 2  # the title and the heading


def test_only_https_becomes_a_link(tmp_path: Path) -> None:
    good = "https://example.org/a?b=1&c"
    addresses = ["javascript:alert(1)", good, "http://example.org", "https://a@b.org", "data:text/html,x"]
    references = [{"board": "b", "tokens_per_s": 1.5, "source": f"source {i}", "url": url} for i, url in enumerate(addresses)]
    found = made(tmp_path, document("speed", [speed_row("a", 9, generate=16)], references=references))
    links = [each["href"] for tag, each in found.attributes if tag == "a" and not (each["href"] or "").startswith("#")]
    assert links == [good]
    assert len(_table(found, "Published tokens/s")) == len(addresses)
    assert not Link("x", "https://[").safe


def test_long_lists_are_bounded_and_told(tmp_path: Path) -> None:
    rows = [speed_row(f"m{i}.gguf", 9 + i / 100, generate=16, samples_ts=[9.0] * 1000) for i in range(1200)]
    found = made(tmp_path, document("speed", rows, missing=[{"what": f"case {i}", "reason": "none"} for i in range(5000)]))
    assert "1200 (the first 1000 shown)" in found.words
    assert any("800 more rows are in the files of results" in words for words in found.words)
    assert any("The first 24 of 1000; the table has more" in words for words in found.words)
    assert sum(len(words) for words in found.words) < 300_000


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    paths = write_all(tmp_path)
    program = (
        "import sys, hashlib; from pathlib import Path; from tinyedge_bench.report.page import page, plots, sections;"
        "from tinyedge_bench.report.drawing import png; from tinyedge_bench.report.sources import read_sources;"
        "found = sections(read_sources([Path(each) for each in sys.argv[1:]]));"
        "print(hashlib.sha256(page('x', found).encode() + png(plots(found)[0])).hexdigest())"
    )
    (tmp_path / "matplotlibrc").write_text("font.size: 40\nlines.color: red\n")
    runs = [
        subprocess.run(
            [sys.executable, "-c", program, str(paths[2])],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)} | extra,
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed, extra in (("1", {}), ("2", {"MATPLOTLIBRC": str(tmp_path)}))
    ]
    assert runs[0] == runs[1] != ""


def test_a_picture_has_twice_the_size_of_its_plot() -> None:
    plot = StripPlot(name="a", title="$t$", description="d", x_label="x", strips=[Strip(name="$n", middle=1.0, value="1")])
    picture = png(plot)
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20], "big") == 2 * 360
    assert "$n" in svg(plot)


def test_only_a_report_is_replaced(tmp_path: Path) -> None:
    html = page("x", [])
    target = tmp_path / "report.html"
    assert write_page(target, html) == len(html.encode())
    write_page(target, html.replace("<h1>x", "<h1>y"))
    assert "<h1>y" in target.read_text()
    notes = tmp_path / "notes.html"
    notes.write_text("<p>mine</p>")
    with pytest.raises(OutputError, match="not a report"):
        write_page(notes, html)
    assert notes.read_text() == "<p>mine</p>"
    with pytest.raises(OutputError, match="is a folder"):
        write_page(tmp_path, html)
    with pytest.raises(OutputError, match="does not exist"):
        write_page(tmp_path / "none" / "report.html", html)


def test_only_pictures_of_a_report_are_replaced(tmp_path: Path) -> None:
    found = plots(sections(read_sources(write_all(tmp_path)[2:])))
    folder = tmp_path / "pictures"
    written = write_pictures(folder, found)
    assert [path.name for path in written] == ["size-quality-1.png", "perplexity-1.png"]
    assert write_pictures(folder, found) == written
    written[1].write_bytes(b"\x89PNG\r\n\x1a\n of somebody")
    with pytest.raises(OutputError, match="not a picture of a report"):
        write_pictures(folder, found)


def test_numbers_that_are_none_are_none() -> None:
    assert [number(each) for each in (1, 2.5, True, "1", math.nan, -math.inf, 10**400, None, [1])] == [1, 2.5, *[None] * 7]
    assert numbers([1, math.nan, "x", 3]) == (1.0, 3.0)
    assert len(numbers([1.0] * 5000)) == 200
    assert text("a\x1b\u202e" + "b" * 100, 12) == "a\\x1b\\u202e…"


def test_decimals() -> None:
    values = (None, 0, 0.00080, 12.345, 1234.5, 999.96, 1e-9, 71.8)
    assert [decimal(each) for each in values] == ["", "0", "0.000800", "12.3", "1,234", "1,000", "1.00e-09", "71.8"]


def test_names_are_what_differs() -> None:
    models = [{"model": f"tiny-{kind}.gguf", "threads": "4 threads", "source": kind} for kind in ("Q4_K_M", "Q8_0")]
    assert distinct_labels(models) == ["Q4_K_M", "Q8_0"]
    assert distinct_labels([{"model": "a.gguf", "depth": depth} for depth in ("@ d0", "@ d512")]) == ["@ d0", "@ d512"]
    assert distinct_labels([{"model": "a.gguf"}]) == ["a.gguf"]
    assert distinct_labels([]) == []


@pytest.mark.parametrize("shade", [0, 1])
def test_every_colour_of_text_stands_out(shade: int) -> None:
    """WCAG 2.2, 1.4.3: at least 4.5:1 on the page and on the cards, as page.css has them."""
    rules = re.findall(r"--(?:page|card): (#[0-9a-f]+)", (Path(svg.__code__.co_filename).parent / "page.css").read_text())
    grounds = rules[2 * shade : 2 * shade + 2]
    for role, shades in PALETTE.items():
        if role != "grid":
            assert min(_contrast(shades[shade], ground) for ground in grounds) >= 4.5, role


def _contrast(one: str, other: str) -> float:
    first, second = sorted((_luminance(one), _luminance(other)))
    return (second + 0.05) / (first + 0.05)


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(c * 2 for c in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _table(found: Page, caption: str) -> list[dict[str, str]]:
    head, *rows = found.tables[caption]
    return [dict(zip(head, row, strict=True)) for row in rows]
