"""The page without a browser: whole, self-contained, the same every time, and nothing left out without a word."""

import base64
import csv
import io
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from effllm.errors import UserError
from effllm.fidelity.grid import write_grid
from effllm.report.command import write_report
from tests.conftest import REPOSITORY
from tests.unit.report.conftest import Pages
from tests.unit.report.hand_made import DISTURBED, NO_SENSOR, row, table9, write_results
from tests.unit.report.reading import Element, elements

H100 = REPOSITORY / "docs" / "results" / "h100"


@pytest.fixture(scope="module")
def read(page: Path) -> list[Element]:
    return elements(page)


def _with(read: list[Element], tag: str, **attributes: str) -> list[Element]:
    wanted = {name.replace("_", "-"): value for name, value in attributes.items()}
    return [
        element
        for element in read
        if element.tag == tag and all(element.get(name) == value for name, value in wanted.items())
    ]


def test_the_same_results_give_the_same_bytes(page: Path, pages: Pages) -> None:
    assert page.read_bytes() == pages().read_bytes()


def test_nothing_is_loaded_from_elsewhere(read: list[Element]) -> None:
    for element in read:
        assert not element.get("src") and element.tag not in ("link", "iframe", "img")
        assert not element.get("href") or element.get("href").startswith("#")
        assert "url(" not in element.get("style")
    style = next(element for element in read if element.tag == "style")
    assert "url(" not in style.text and "@import" not in style.text
    (policy,) = _with(read, "meta", http_equiv="Content-Security-Policy")
    assert policy.get("content").startswith("default-src 'none'") and "http" not in policy.get("content")


def test_landmarks_headings_and_names_of_parts(read: list[Element]) -> None:
    assert [len(_with(read, tag)) for tag in ("header", "nav", "main", "footer", "h1")] == [1] * 5
    assert next(element for element in read if element.tag == "html").get("lang") == "en"
    ids = [element.get("id") for element in read if element.get("id")]
    assert len(ids) == len(set(ids))
    targets = {element.get("href")[1:] for element in read if element.tag == "a"}
    targets |= {name for element in read for name in element.get("aria-labelledby").split()}
    targets |= {element.get("for") for element in read if element.tag == "label"}
    assert targets <= set(ids)
    levels = [int(element.tag[1]) for element in read if re.fullmatch("h[1-6]", element.tag)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_tables_have_captions_and_scopes_and_what_scrolls_can_be_reached(read: list[Element]) -> None:
    tables = _with(read, "table")
    captions = [element for element in read if element.tag == "caption" and element.text]
    assert tables and {id(caption.parent) for caption in captions} == {id(table) for table in tables}
    assert all(element.get("scope") in ("col", "row") for element in read if element.tag == "th")
    for table in tables:
        region = table.parent
        assert (region.get("role"), region.get("tabindex")) == ("region", "0") and region.get("aria-label")
    labels = {element.get("for") for element in _with(read, "label")}
    assert {element.get("id") for element in read if element.tag in ("textarea", "input")} <= labels
    assert all(svg.get("aria-label") or _is_hidden(svg) for svg in _with(read, "svg"))


def _is_hidden(element: Element | None) -> bool:
    return element is not None and (element.get("aria-hidden") == "true" or _is_hidden(element.parent))


def test_every_row_is_a_mark_or_named_as_absent_in_every_chart(read: list[Element]) -> None:
    names = {f"{cells['model']} {cells['precision']}": f"table9-{n}" for n, cells in enumerate(table9(), start=1)}
    charts = [figure for figure in _with(read, "figure") if figure.get("id").startswith("table9-0-")]
    assert len(charts) == 3
    drawn_charts = 0
    for figure in charts:
        marks = [e for e in read if "mark" in e.get("class").split() and e.above("figure") is figure]
        if not marks:
            assert NO_SENSOR in figure.text
            continue
        drawn_charts += 1
        drawn = {mark.get("data-row") for mark in marks}
        assert len(drawn) == len(marks)
        notes = " ".join(e.text for e in read if e.get("class") == "note" and e.above("figure") is figure)
        absent = {id for name, id in names.items() if f"{name} (" in notes or f"{name}," in notes}
        assert drawn | absent == set(names.values()) and not drawn & absent
    assert drawn_charts == 2


def test_rows_that_do_not_count_are_drawn_hollow_and_listed_with_their_reason(read: list[Element]) -> None:
    hollow = {
        e.get("data-row") for e in read if "mark" in e.get("class").split() and "invalid" in e.get("class").split()
    }
    assert hollow == {"table9-5"}
    (failures,) = _with(read, "section", id="failures")
    assert f"Qwen2-1M float16 table9 invalid {DISTURBED}" in failures.text
    assert "1 of 6 rows do not count" in failures.text


def test_what_was_not_measured_is_never_a_number(read: list[Element]) -> None:
    (line,) = _with(read, "tr", id="table9-6")
    cells = [element for element in read if element.parent is line]
    assert "not measured" in cells[2].text
    assert "latency_ms" not in json.loads(line.get("data-values"))
    assert not cells[2].get("data-order")


def test_every_table_can_be_copied_as_csv(page: Path, read: list[Element]) -> None:
    areas = {element.get("id"): "".join(element.texts) for element in _with(read, "textarea")}
    assert areas["table9-rows-csv"].lstrip("\n") == (page.parent / "table9.csv").read_text()
    for text in areas.values():
        header, *lines = csv.reader(io.StringIO(text.lstrip("\n")))
        assert lines and all(len(line) == len(header) for line in lines)
    figures = [figure.get("id") for figure in _with(read, "figure") if NO_SENSOR not in figure.text]
    assert figures and all(f"{id}-figures-csv" in areas for id in figures)


def test_changes_are_paired_and_say_how_many_items_differ(read: list[Element]) -> None:
    (forest,) = _with(read, "figure", id="table9-forest-average_performance")
    assert "1 of 700 items differ" in forest.text
    assert "\N{MINUS SIGN}0.62 [\N{MINUS SIGN}1.02, \N{MINUS SIGN}0.22] surely worse" in forest.text
    (memory,) = _with(read, "figure", id="table9-change-memory_peak_GB")
    assert "int4 +33.1 % to +33.3 % (surely worse in 2 of 2)" in memory.text
    assert "Not in this chart: Qwen2-1M float16 (invalid" in memory.text


def test_provenance_and_time_taken(read: list[Element]) -> None:
    (provenance,) = _with(read, "section", id="provenance")
    for text in (
        "0123456789ab (1 of 2)",
        "with changes that were not committed",
        "torch 2.13.0",
        "2026-11-20T10:00:00Z",
    ):
        assert text in provenance.text
    assert "How evaluate/llama-1m.int4.lost came to be is not known" in provenance.text
    (plan,) = _with(read, "section", id="plan")
    assert "took 20 minutes" in plan.text and "effllm plan --json > results/plan.json" in plan.text


def test_a_kept_plan_is_held_against_what_was_taken(tmp_path: Path) -> None:
    directory = write_results(tmp_path / "results")
    figure = {"value": 300.0, "basis": "measured", "source": ""}
    nodes = [
        {"name": "profile/llama-1m.int4", "wall_s": figure},
        {"name": "quantize/llama-1m.int4", "wall_s": figure | {"value": None}},
    ]
    (directory / "plan.json").write_text(json.dumps({"nodes": nodes}))
    write_report(directory, tmp_path / "report.html", {})
    (plan,) = _with(elements(tmp_path / "report.html"), "section", id="plan")
    assert "profile 1 10 5 2 1 of 1 artifact had a planned time" in plan.text
    assert "quantize 1 10 \N{EN DASH} \N{EN DASH} 0 of 1 artifact had a planned time" in plan.text


def test_missing_csvs_are_named_with_the_command_that_makes_them(tmp_path: Path) -> None:
    directory = write_results(tmp_path / "results")
    (directory / "table9-pairs.csv").unlink()
    write_report(directory, tmp_path / "report.html", {})
    text = (tmp_path / "report.html").read_text()
    for name in ("table9-pairs", "claims", "comparison", "ranks", "validity"):
        assert f"snakemake --profile profiles/local results/{name}.csv" in text


def test_scaling_laws_have_a_section_where_there_are_some(tmp_path: Path) -> None:
    directory = write_results(tmp_path / "results")
    write_report(directory, tmp_path / "report.html", {})
    assert "Scaling laws" not in (tmp_path / "report.html").read_text()
    header = "table,method,alpha,alpha_low,alpha_high,rank,rank_probabilities"
    (directory / "scaling.csv").write_text(f'{header}\ntable3,GQA,0.34,0.3,0.4,cannot be said,"1: 62.0 %, 2: 38.0 %"\n')
    write_report(directory, tmp_path / "report.html", {})
    (section,) = _with(elements(tmp_path / "report.html"), "section", id="scaling")
    assert "GQA 0.34 [0.3, 0.4] cannot be said 1: 62.0 %, 2: 38.0 %" in section.text


def test_pairs_of_all_tables_serve_a_table_without_its_own(tmp_path: Path) -> None:
    directory = write_results(tmp_path / "results")
    write_report(directory, tmp_path / "own.html", {})
    (directory / "table9-pairs.csv").rename(directory / "pairs.csv")
    write_report(directory, tmp_path / "all.html", {})
    assert (tmp_path / "all.html").read_bytes() == (tmp_path / "own.html").read_bytes()
    assert "Change against the baseline" in (tmp_path / "all.html").read_text()


NASTY = [
    '<script>alert("x")</script>',
    "quote \" ' & <b>",
    "\N{ARABIC LETTER MEEM}\N{ARABIC LETTER SEEN} nemotron",
    "\N{ROCKET} 7B",
    "a" * 120,
]


@pytest.mark.parametrize("name", NASTY, ids=["tag", "quotes", "right to left", "emoji", "long"])
def test_labels_are_text_whatever_they_hold(name: str, pages: Pages) -> None:
    page = pages([row(name, "bfloat16", 0.6, 100, 1.0), row(name, "int4", 0.59, 80, 0.5)])
    read = elements(page)
    assert len(_with(read, "script")) == 1 and not _with(read, "b", parent="td")
    (line,) = _with(read, "tr", id="table9-1")
    assert next(element for element in read if element.parent is line).text == f"{name} bfloat16"
    tips = [element.get("aria-label") for element in read if "mark" in element.get("class").split()]
    assert tips and all(tip.startswith(name) for tip in tips)


def test_one_row_and_one_value_are_drawn(pages: Pages) -> None:
    rows = [row("A", "bfloat16", 0.0, 5.0, 1.0)]
    assert 'data-row="table9-1"' in pages(rows).read_text()


def test_committed_results_without_quality_show_costs_alone(tmp_path: Path) -> None:
    write_report(H100, tmp_path / "report.html", {})
    read = elements(tmp_path / "report.html")
    (section,) = _with(read, "section", id="table3")
    assert "Perplexity was not measured: random tokens. The charts show costs alone." in section.text
    rows = {element.get("id") for element in read if element.tag == "tr" and element.get("id").startswith("table3-")}
    drawn = {
        e.get("data-row") for e in read if e.get("data-row") and e.above("figure") and e.above("section") is section
    }
    assert drawn and drawn <= rows
    marks = [element for element in read if "mark" in element.get("class").split()]
    assert not any(mark.above("section") is section for mark in marks)
    # By size and workload a table is drawn without its quality too.
    assert marks and {mark.above("section").get("id") for mark in marks} == {"table9"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda path: path.rename(path.with_name("elsewhere")), "is no directory"),
        (lambda path: (path / "table9.csv").unlink(), "holds none of"),
        (lambda path: (path / "table9.csv").write_bytes(b"\xff\xfe"), "is not text in UTF-8"),
        (lambda path: (path / "table9-pairs.csv").write_text('a,b\n"'), "table9-pairs.csv is not a whole CSV file"),
        (
            lambda path: (path / "table9-pairs.csv").write_text("table,row\ntable9,x\n"),
            "table9-pairs.csv lacks the column",
        ),
        (lambda path: (path / "claims.csv").write_text(""), "claims.csv is empty"),
        (lambda path: (path / "plan.json").write_text("[]"), "is not what `effllm plan --json` prints"),
    ],
    ids=["no directory", "no table", "table of bytes", "damaged pairs", "other pairs", "empty claims", "damaged plan"],
)
def test_damage_is_told_in_a_sentence(tmp_path: Path, change, sentence: str) -> None:
    directory = write_results(tmp_path / "results")
    change(directory)
    with pytest.raises(UserError, match=re.escape(sentence)):
        write_report(directory, tmp_path / "report.html", {})


def test_lost_provenance_and_records_are_no_error(tmp_path: Path) -> None:
    directory = write_results(tmp_path / "results")
    (directory / "profile/llama-1m.int4/provenance.json").write_text(
        '{"git": "x", "host": 3, "packages": [], "wall_s": "y"}'
    )
    (directory / ".tables/table9.json").write_text('{"spec": {}, "inputs": {"profile/llama-1m.int4": "ab"}}')
    write_report(directory, tmp_path / "report.html", {})
    (directory / ".tables/table9.json").unlink()
    write_report(directory, tmp_path / "report.html", {})
    assert "commits and digests are not known" in (tmp_path / "report.html").read_text()


def test_samples_of_models_stand_in_the_page_and_lost_ones_are_named(tmp_path: Path) -> None:
    directory = write_results(tmp_path / "results")
    record = json.loads((directory / ".tables" / "table9.json").read_text())
    names = ("sample/dit.few", "sample/a-photo.few", "sample/z-photo.few", "sample/lost.few")
    record["inputs"] |= dict.fromkeys(names, "ab" * 32)
    record["spec"]["config"] = {"rows": [{"runs": ["dit"]}, {"runs": ["z-photo", "lost"]}, {"runs": ["a-photo"]}]}
    (directory / ".tables" / "table9.json").write_text(json.dumps(record))
    pixels = np.random.default_rng(0).integers(0, 256, (60, 3, 128, 128), dtype=np.uint8)
    grids = {name: directory / name / "records" / "grid.png" for name in names[:3]}
    for images, path in zip((pixels[:40, :1, :8, :8], pixels, pixels), grids.values(), strict=True):
        path.parent.mkdir(parents=True)
        write_grid(path, images, 10)
    write_report(directory, tmp_path / "report.html", {})
    read = elements(tmp_path / "report.html")
    digits, photos, last = _with(read, "img")
    shown_in_order = [image.get("alt") for image in (digits, photos, last)]
    assert shown_in_order == [f"Samples of {name}" for name in ("dit.few", "z-photo.few", "a-photo.few")]
    assert photos.get("src").startswith("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(digits.get("src").partition(",")[2]))) as shown:
        assert np.array_equal(np.asarray(shown), np.asarray(Image.open(grids["sample/dit.few"])))
        assert (digits.get("width"), digits.get("height")) == tuple(map(str, shown.size))
    assert photos.get("width") == "480" and len(photos.get("src")) < 400_000
    assert any("No picture is left of sample/lost.few" in element.text for element in read if element.tag == "p")
    (policy,) = _with(read, "meta", http_equiv="Content-Security-Policy")
    assert "img-src data:;" in policy.get("content")
