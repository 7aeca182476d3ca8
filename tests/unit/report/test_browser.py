"""The page in a browser: at a desk and on a phone, by day and by night, with and without its script."""

import json
import os
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from effllm.cli import main
from tests.unit.report.conftest import Pages
from tests.unit.report.hand_made import row, table9, write_results
from tests.unit.report.test_page import NASTY

pytest.importorskip("playwright", reason="playwright is not installed")
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"),
]

SIZES = {"desk": 1280, "phone": 390}
CASES = list(product(SIZES, ("light", "dark"), ("script", "no script")))
SMALLEST_TEXT_PX = 11
# Of text, whatever is drawn: SVG scales its own.
TEXT_SIZES = """() => {
  const sizes = {};
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility() || element.closest(".hidden, script, title")) continue;
    const svg = element.closest("svg[viewBox]");
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    const size = parseFloat(getComputedStyle(element).fontSize) * scale;
    sizes[size.toFixed(2)] ??= node.data.trim().slice(0, 40);
  }
  return sizes;
}"""
# Whatever is wider than the window without a scroll bar of its own.
WIDEST = """() => [...document.querySelectorAll("body *")]
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1)
  .filter((e) => !e.closest(".scroll, pre, textarea, .hidden, .skip"))
  .map((e) => e.tagName + "." + e.getAttribute("class")).slice(0, 5)"""
# WCAG's contrast of every colour that draws or writes, against the background.
CONTRASTS = """() => {
  const channel = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.match(/[\\d.]+/g).map((text) => channel(Number(text)));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const probe = document.createElement("span");
  document.body.append(probe);
  const of = (name) => {
    probe.style.color = `var(--${name})`;
    return luminance(getComputedStyle(probe).color);
  };
  const found = {};
  for (const name of "fg mute link limit c0 c1 c2 c3 c4 c5 c6 c7".split(" ")) {
    const [light, dark] = [of(name), of("bg")].sort((one, other) => other - one);
    found[name] = (light + 0.05) / (dark + 0.05);
  }
  probe.remove();
  return found;
}"""
FOCUSED = "document.activeElement"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # Chromium's own sandbox does not run as root, which containers of continuous integration are.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


class Opened:
    """A page in a context of its own, and what it asked of the network and said on the console."""

    def __init__(self, context: BrowserContext, path: Path, anchor: str = ""):
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page: Page = context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.address = path.as_uri() + anchor
        self.page.goto(self.address)


@pytest.fixture
def open_page(browser: Browser, request: pytest.FixtureRequest):
    def opened(path: Path, anchor: str = "", width: int = 1280, scheme: Any = "light", script: bool = True) -> Opened:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=script
        )
        request.addfinalizer(context.close)
        return Opened(context, path, anchor)

    return opened


@pytest.mark.parametrize(("size", "scheme", "script"), CASES, ids=[", ".join(case) for case in CASES])
def test_it_reads_everywhere(page: Path, open_page, size: str, scheme: str, script: str) -> None:
    opened = open_page(page, width=SIZES[size], scheme=scheme, script=script == "script")
    # Playwright's own evaluation works where the page's scripts are off.
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]
    assert opened.page.evaluate(WIDEST) == []
    sizes = opened.page.evaluate(TEXT_SIZES)
    assert sizes and min(map(float, sizes)) >= SMALLEST_TEXT_PX, sizes
    assert opened.requests == [opened.address] and opened.complaints == []
    rows = opened.page.locator("#table9-rows-csv")
    assert rows.count() == 1 and opened.page.locator("tr[id^='table9-']").count() == 6
    assert opened.page.locator(".budgets").is_visible() == (script == "script")
    contrasts = opened.page.evaluate(CONTRASTS)
    assert min(contrasts[name] for name in ("fg", "mute", "link")) >= 4.5
    assert min(contrasts.values()) >= 3, contrasts


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two runs: one row is slower in the second, one is gone, one is new."""
    root = tmp_path_factory.mktemp("two")
    rows = [*table9()]
    later = [dict(rows[0], latency_ms=rows[0]["latency_ms"] * 1.5), *rows[2:], row("Qwen2-1M", "int8", 0.6, 250, 0.5)]
    before, after = (write_results(root / name, of) for name, of in (("before", rows), ("after", later)))
    with pytest.raises(SystemExit, match="0"):
        main(["report", str(before), str(after)])
    return after / "report.html"


@pytest.mark.parametrize(("size", "scheme", "script"), CASES, ids=[", ".join(case) for case in CASES])
def test_two_runs_read_everywhere(two_runs: Path, open_page, size: str, scheme: str, script: str) -> None:
    opened = open_page(two_runs, width=SIZES[size], scheme=scheme, script=script == "script")
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]
    assert opened.page.evaluate(WIDEST) == []
    sizes = opened.page.evaluate(TEXT_SIZES)
    assert sizes and min(map(float, sizes)) >= SMALLEST_TEXT_PX, sizes
    assert opened.requests == [opened.address] and opened.complaints == []


@pytest.mark.parametrize("size", SIZES)
def test_charts_of_one_row_of_the_page_are_equally_high(page: Path, open_page, size: str) -> None:
    opened = open_page(page, width=SIZES[size])
    boxes = [chart.bounding_box() for chart in opened.page.locator("svg.scatter").all()]
    assert len(boxes) == 4
    assert len({round(box["height"]) for box in boxes}) == 1
    if size == "desk":
        assert boxes[0]["y"] == boxes[1]["y"]


@pytest.mark.parametrize("name", NASTY, ids=["tag", "quotes", "right to left", "emoji", "long"])
def test_names_stay_text_and_within_the_page(name: str, pages: Pages, open_page) -> None:
    rows = [row(name, "bfloat16", 0.6, 100, 1.0), row(name, "<i>4</i>", 0.59, 80, 0.5)]
    opened = open_page(pages(rows), width=390)
    assert opened.complaints == [] and opened.requests == [opened.address]
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert opened.page.evaluate(WIDEST) == []
    assert opened.page.locator("tr#table9-2 th").inner_text() == f"{name} <i>4</i>"


def test_every_part_is_reached_by_the_keyboard(page: Path, open_page) -> None:
    opened = open_page(page).page
    opened.keyboard.press("Tab")
    assert opened.evaluate(f"{FOCUSED}.className") == "skip"
    seen = set()
    for _ in range(200):
        opened.keyboard.press("Tab")
        seen.add(opened.evaluate(f"{FOCUSED}.tagName"))
        if opened.evaluate(f"{FOCUSED} === document.body"):
            break
        assert opened.evaluate(f"getComputedStyle({FOCUSED}).outlineStyle") != "none"
    assert {"A", "BUTTON", "INPUT", "SUMMARY", "DIV", "PRE", "g"} <= seen


def test_arrows_go_from_mark_to_mark(page: Path, open_page) -> None:
    opened = open_page(page).page
    chart = opened.locator("#table9-0-memory_peak_GB svg.scatter")
    marks = chart.locator(".mark")
    assert chart.locator(".mark[tabindex='0']").count() == 1
    chart.locator(".mark[tabindex='0']").focus()
    visited = []
    for _ in range(marks.count()):
        visited.append(opened.evaluate(f"{FOCUSED}.dataset.row"))
        opened.keyboard.press("ArrowRight")
    assert len(set(visited)) == marks.count()
    assert opened.evaluate(f"{FOCUSED}.dataset.row") == visited[0]


def _answers(opened: Page) -> dict[str, str]:
    """What the sliders say of every row."""
    return opened.locator("tr[data-fit]").evaluate_all(
        "(lines) => Object.fromEntries(lines.map((line) => [line.id, line.dataset.fit]))"
    )


def _set(opened: Page, column: str, limit: float) -> float:
    """Move a slider to its last stop that is no larger than `limit`; the stop."""
    slider = opened.locator(f"[data-column='{column}']")
    stops = json.loads(slider.get_attribute("data-stops"))
    at = max(index for index, stop in enumerate(stops) if stop <= limit)
    slider.fill(str(at))
    return stops[at]


def test_sliders_have_four_answers_and_the_address_keeps_them(page: Path, open_page) -> None:
    opened = open_page(page).page
    assert set(_answers(opened).values()) == {"fits", "invalid"}
    limit = _set(opened, "latency_ms", 240)
    answers = _answers(opened)
    assert answers == {
        "table9-1": "latency_ms: exceeds",
        "table9-2": "fits",
        "table9-3": "latency_ms: too close to call",
        "table9-4": "latency_ms: exceeds",
        "table9-5": "invalid",
        "table9-6": "latency_ms: not measured",
    }
    faint = {mark.get_attribute("data-row") for mark in opened.locator("#table9-0-memory_peak_GB .mark.out").all()}
    assert faint == set(answers) - {"table9-2"}
    assert "1 of 5 valid rows fit" in opened.locator(".budgets [role=status]").inner_text()
    assert opened.locator(".asked").inner_text() == f"effllm recommend results/table9.csv --max latency_ms={limit:g}"
    again = open_page(page, anchor=opened.evaluate("location.hash")).page
    assert _answers(again) == answers
    again.locator(".reset").click()
    assert set(_answers(again).values()) == {"fits", "invalid"} and again.evaluate("location.hash") == ""


@pytest.mark.parametrize(
    "limits",
    [
        {"latency_ms": 240},
        {"latency_ms": 300, "memory_peak_GB": 0.47},
        {"average_performance": 0.62, "memory_peak_GB": 0.63},
        {"memory_peak_GB": 0.46},
    ],
    ids=["one", "two costs", "quality and cost", "nothing fits"],
)
def test_sliders_say_what_recommend_says(
    page: Path, open_page, limits: dict[str, float], capsys: pytest.CaptureFixture
) -> None:
    opened = open_page(page).page
    for column, limit in limits.items():
        _set(opened, column, limit)
    names = dict(
        opened.locator("tr[data-fit]").evaluate_all(
            "(lines) => lines.map((line) => [line.querySelector('th').textContent, line.id])"
        )
    )
    answers = _answers(opened)
    options = opened.locator(".asked").inner_text().split()[3:]
    with pytest.raises(SystemExit):
        main(["recommend", str(page.parent / "table9.csv"), *options, "--json"])
    found = json.loads(capsys.readouterr().out)
    rows = [row for scope in found["scopes"] for row in scope["rows"]]
    assert len(options) == 2 * len(limits) and len(rows) == 5
    for judged in rows:
        against = {f"{limit['column']}: {limit['answer']}" for limit in judged["limits"] if limit["answer"] != "fits"}
        said = answers[names[" ".join(judged["row"].values())]]
        assert set(said.split("; ")) == (against or {"fits"})


def test_a_series_is_hidden_with_its_marks_and_rows_and_the_address_keeps_it(page: Path, open_page) -> None:
    opened = open_page(page).page
    before = opened.locator(".mark:visible").count()
    button = opened.locator("[data-series=int4] button")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert opened.locator("tr#table9-3").is_hidden() and opened.locator("tr#table9-1").is_visible()
    assert opened.locator(".mark:visible").count() < before
    again = open_page(page, anchor=opened.evaluate("location.hash")).page
    assert again.locator("tr#table9-3").is_hidden()
    again.locator("[data-series=int4] button").click()
    assert again.locator(".mark:visible").count() == before and again.evaluate("location.hash") == ""


def test_tables_are_sorted_with_unknowns_last_and_back(page: Path, open_page) -> None:
    opened = open_page(page).page
    table = opened.locator("table.sortable").first

    def order() -> list[str]:
        return [line.get_attribute("id") for line in table.locator("tbody tr").all()]

    original = order()
    latency = table.locator("th", has_text="latency")
    latency.locator("button").click()
    assert latency.get_attribute("aria-sort") == "ascending"
    assert [*order()][:2] == ["table9-2", "table9-3"] and order()[-1] == "table9-6"
    latency.locator("button").click()
    assert order()[0] == "table9-4" and order()[-1] == "table9-6"
    again = open_page(page, anchor=opened.evaluate("location.hash")).page.locator("table.sortable").first
    assert [line.get_attribute("id") for line in again.locator("tbody tr").all()] == order()
    latency.locator("button").click()
    assert order() == original


def test_csv_is_copied(page: Path, open_page) -> None:
    opened = open_page(page).page
    opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened.locator("summary", has_text="CSV of all rows").click()
    opened.locator("#table9-rows-csv + button").click()
    opened.locator("#table9-rows-csv + button", has_text="Copied").wait_for()
    assert opened.evaluate("navigator.clipboard.readText()") == (page.parent / "table9.csv").read_text()


def test_paper_has_every_table_and_no_controls(page: Path, open_page) -> None:
    opened = open_page(page, scheme="dark").page
    opened.emulate_media(media="print")
    assert not opened.locator(".budgets").is_visible() and not opened.locator("nav").is_visible()
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.locator("#table9-change-memory_peak_GB table").is_visible(), "figures of a closed chart are printed"


def test_five_hundred_rows_are_drawn_and_can_be_narrowed(pages: Pages, open_page) -> None:
    rows = [row(f"M{n // 10}", f"p{n % 10}", 0.3 + n % 97 / 300, 100 + n, 1 + n % 53) for n in range(500)]
    path = pages([cells if cells["precision"] != "p0" else cells | {"precision": "bfloat16"} for cells in rows])
    opened = open_page(path)
    assert opened.complaints == []
    assert opened.page.locator("#table9-0-latency_ms .mark").count() == 500
    _set(opened.page, "latency_ms", 200)
    answers = _answers(opened.page)
    assert len(answers) == 500 and 0 < list(answers.values()).count("fits") < 110
