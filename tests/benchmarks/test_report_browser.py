"""The page in a real browser: what it shows, what it asks of the network, on a phone and in the dark."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("playwright")

from playwright import sync_api
from report_documents import SWEEP, document, speed_row, write_all

from tinyedge_bench.report.page import page, sections
from tinyedge_bench.report.sources import read_sources

pytestmark = pytest.mark.browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MARKUP = "</svg><script>document.title='run'</script><b>bold"
NAME = "<svg onload=1>$x"
PHONE = {"width": 360, "height": 800}
DESK = {"width": 1200, "height": 900}

# The contrast by WCAG 2.2 of each text with the first ground behind it that is not transparent; shapes in SVG have their fill.
CONTRASTS = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => channels(colour).slice(0, 3).map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = getComputedStyle(at).backgroundColor;
      if (found !== 'transparent' && channels(found)[3] !== 0) return found;
    }
    return 'rgb(255, 255, 255)';
  };
  return [...document.querySelectorAll('h1, h2, p, td, th, a, li, caption, figcaption, svg text')].map((element) => {
    const style = getComputedStyle(element);
    const colour = element.ownerSVGElement ? style.fill : style.color;
    const pair = [luminance(colour), luminance(ground(element))].sort((a, b) => b - a);
    return [(pair[0] + 0.05) / (pair[1] + 0.05), element.textContent.slice(0, 40)];
  });
}"""
# The boxes of all texts of a plot that cover each other by more than a pixel, and those outside of the plot.
# Of slanted texts the boxes overlap while the letters do not: these are not compared with each other.
COLLISIONS = """(svg) => {
  const whole = svg.getBoundingClientRect();
  const slanted = (text) => { const at = text.getScreenCTM(); return Math.abs(at.a * at.b) > 0.05; };
  const boxes = [...svg.querySelectorAll('text')]
    .map((text) => [text.textContent, text.getBoundingClientRect(), slanted(text)]);
  const found = boxes.filter(([, box]) => box.left < whole.left - 1 || box.right > whole.right + 1
    || box.top < whole.top - 1 || box.bottom > whole.bottom + 1).map(([name]) => name + ' is outside');
  const high = (box) => (box.bottom - box.top) * 0.22;  // a line box has room above and below its letters
  boxes.forEach(([name, one, aslant], i) => boxes.slice(i + 1).forEach(([other, two, too]) => {
    if (!(aslant && too) && one.left < two.right - 1 && two.left < one.right - 1
        && one.top + high(one) < two.bottom - high(two) && two.top + high(two) < one.bottom - high(one))
      found.push(name + ' covers ' + other);
  }));
  return found;
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser: TINYEDGE_CHROMIUM, one that is installed, or playwright's own; skips where there is none."""
    found = os.environ.get("TINYEDGE_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with sync_api.sync_playwright() as running:
        try:
            browser = running.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no Chromium starts: {error.message.splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    target = folder / "report.html"
    target.write_text(page("Measurements", sections(read_sources(write_all(folder)))))
    return target


def opened(chromium: Any, path: Path, size: dict[str, int], scheme: str = "light") -> Any:
    """The page, checked to say nothing on the console and to ask for nothing but itself."""
    tab = chromium.new_context(viewport=size, color_scheme=scheme).new_page()
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri(), wait_until="load")
    assert said == []
    assert [url for url in asked if not url.startswith("data:,")] == [path.as_uri()]
    return tab


def test_every_plot_is_seen_with_its_points(chromium: Any, report: Path) -> None:
    tab = opened(chromium, report, DESK)
    shown = {plot.get_attribute("id"): plot for plot in tab.query_selector_all("svg.plot")}
    for plot in shown.values():
        assert plot.is_visible()
        box = plot.bounding_box()
        assert box["width"] > 250
        assert box["height"] > 60

    def marks(name: str, kind: str) -> int:
        return len(shown[name].query_selector_all(f"g.{kind} use"))

    # Two models at three counts of threads, five runs each; one at four depths; two other engines, two cases.
    assert (marks("speed-by-threads-prompt", "middles"), marks("speed-by-threads-prompt", "samples")) == (6, 30)
    assert (marks("speed-by-depth-generation", "middles"), marks("speed-by-depth-generation", "samples")) == (4, 20)
    assert (marks("peers", "middles"), marks("peers", "samples")) == (4, 20)
    assert marks("roofline-1", "middles") == 7
    assert len(shown["roofline-1"].query_selector_all("g.bandwidth path, g.matrix path")) == 4
    assert marks("size-quality-2", "middles") == len(SWEEP)
    assert marks("multiple-choice-1", "middles") == 3 * 7
    words = shown["size-quality-2"].text_content()
    assert all(name in words for name, *_ in SWEEP)


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_names_in_plots_do_not_cover_each_other(chromium: Any, report: Path, size: dict[str, int]) -> None:
    tab = opened(chromium, report, size)
    found = {plot.get_attribute("id"): plot.evaluate(COLLISIONS) for plot in tab.query_selector_all("svg.plot")}
    assert {name: each for name, each in found.items() if each} == {}


def test_a_phone_scrolls_tables_and_not_the_page(chromium: Any, report: Path) -> None:
    tab = opened(chromium, report, PHONE)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.evaluate("[...document.querySelectorAll('.scroll')].some((each) => each.scrollWidth > each.clientWidth)")
    sizes = tab.evaluate(
        "[...document.querySelectorAll('p, td, th, li, a')].map((each) => parseFloat(getComputedStyle(each).fontSize))"
    )
    assert min(sizes) >= 14
    # The size of the letters on the screen; some are turned.
    smallest = tab.evaluate(
        """Math.min(...[...document.querySelectorAll('svg.plot text')].map((each) => {
          const scale = each.getScreenCTM();
          return parseFloat(getComputedStyle(each).fontSize) * Math.hypot(scale.a, scale.b);
        }))"""
    )
    assert smallest >= 10


def test_dark_and_light_are_both_readable(chromium: Any, report: Path) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        tab = opened(chromium, report, PHONE, scheme)
        grounds.append(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        contrasts = tab.evaluate(CONTRASTS)
        assert len(contrasts) > 300
        ratio, words = min(contrasts)
        assert ratio >= 4.5, words
    assert grounds == ["rgb(255, 255, 255)", "rgb(20, 24, 29)"]


def test_plots_are_named_for_those_who_do_not_see_them(chromium: Any, report: Path) -> None:
    tab = opened(chromium, report, DESK)
    named = tab.get_by_role("img", name="Size and KL divergence of sweep")
    assert named.count() == 1
    assert tab.get_by_role("img").count() == len(tab.query_selector_all("svg.plot"))
    assert tab.get_by_role("table", name="Published tokens/s").count() == 1
    assert tab.get_attribute("html", "lang") == "en"


def test_hostile_names_are_text(chromium: Any, tmp_path: Path) -> None:
    rows = [
        speed_row(f"{i}{NAME}.gguf", 9.0 + i, generate=16, threads=threads, engine=MARKUP, warnings=[MARKUP])
        for i in range(2)
        for threads in (1, 2)
    ]
    references = [{"board": MARKUP, "tokens_per_s": 2, "source": "here", "url": "javascript:document.title='run'"}]
    source = tmp_path / "hostile.json"
    source.write_text(json.dumps(document("speed", rows, references=references, missing=[{"what": MARKUP, "reason": MARKUP}])))
    target = tmp_path / "report.html"
    target.write_text(page(MARKUP, sections(read_sources([source]))))
    tab = opened(chromium, target, PHONE)
    assert tab.title() == MARKUP
    assert tab.text_content("h1") == MARKUP
    assert tab.locator("script, b:not(figcaption b)").count() == 0
    assert tab.locator("a[href^='javascript']").count() == 0
    assert f"0{NAME}" in (tab.text_content("#speed-by-model-generation", timeout=2000) or "")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
