"""The report: both pages of plans that are empty, half done and done, whole and in need of nothing else."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_plans import make_plan, pretend, train

from mrt5cli.analysis.across_runs import run_analysis
from mrt5cli.errors import UserError
from mrt5cli.fingerprint import recipe_hash
from mrt5cli.metrics.results import Row
from mrt5cli.report import page as reports
from mrt5cli.report.analysis_tables import analysis_tables
from mrt5cli.report.claims import CLAIMS, Claim
from mrt5cli.report.html import Section, markdown_cell
from mrt5cli.report.html import page as html_page
from mrt5cli.report.page import write_report
from mrt5cli.report.results import Results
from mrt5cli.report.tables import HEADERS, Table, evidence_of, in_unit, number, our_runs
from mrt5cli.suite.jobs import Experiment, SuitePlan
from mrt5cli.suite.suites import load_suite
from mrt5cli.writing import write_json, write_text

PAPER = load_suite("paper")
VOID = {"meta", "br", "hr", "img"}


class Page(HTMLParser):
    """What is in a page, and whether its tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def pages(paths: list[Path]) -> tuple[str, str]:
    html, markdown = paths
    assert (html.name, markdown.name) == ("report.html", "report.md")
    return html.read_text(encoding="utf-8"), markdown.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The report of the paper's suite before anything has run."""
    root = tmp_path_factory.mktemp("empty")
    plan = make_plan(root / "runs", PAPER, smoke=False)
    for job in plan.jobs:
        job.status, job.reason = "missing", None
    return pages(write_report(replace(plan, suite="paper"), root / "report"))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> tuple[SuitePlan, Path]:
    """A plan of the whole paper in which two runs failed and no analysis is done, and its report."""
    root = tmp_path_factory.mktemp("half")
    failed = ["multilingual_v3/fixed_60", "xnli_v3/cp_2"]
    plan = replace(make_plan(root / "runs", PAPER, left_out=failed, smoke=False), suite="paper")
    pretend(plan, shift=1.5)
    write_report(plan, root / "report")
    return plan, root / "report"


TINY = Experiment(
    "tiny",
    "Tiny <models> | of everything",
    None,
    "What & why.",
    ("multilingual_v3/byt5", "multilingual_v3/mrt5_50", "softmax_ablation/mrt5_50", "multilingual_v3/bp_50"),
    baseline="multilingual_v3/byt5",
    analyses=("per_sample", "compute", "runtime", "deletion_patterns", "gate_placement", "softmax1",
              "settling", "dial"),
    figures=("loss_against_reduction", "per_language", "gate_placement", "macs", "per_sample",
             "deletion_patterns", "runtime", "settling", "any_rate"),
    claims=tuple(CLAIMS),
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[SuitePlan, Path]:
    """A smoke plan with every analysis, figure and claim there is."""
    root = tmp_path_factory.mktemp("tiny")
    plan = make_plan(root / "runs", [TINY])
    train(plan, runtime=True)
    for job in plan.trainings:
        last = job.recipe.training.max_steps
        write_text(job.run.metrics_path, f'{{"step": {last}, "deletion_rate": 0.5}}\n')
    for name in TINY.analyses:
        write_json(plan.analysis(TINY, name), run_analysis(name, plan.experiment_runs(TINY)))
    write_report(plan, root / "report")
    return plan, root / "report"


def both(where: tuple[SuitePlan, Path]) -> tuple[str, str]:
    return pages([where[1] / "report.html", where[1] / "report.md"])


def test_an_analysis_of_other_code_is_left_out_and_said(tmp_path: Path) -> None:
    """Claims and tables would look for fields in it that it has under other names, or not at all."""
    plan = make_plan(tmp_path, [TINY])
    write_json(plan.analysis(TINY, "settling"), {"runs": [], "made": {"code": "0.0.1+old"}})
    results = Results(plan, TINY)
    assert not results.analyses and "settling.json was made with other code" in results.damaged[0]
    assert "analysis settling" in results.evidence.missing


# --- pages are whole -------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["empty", "half", "tiny"])
def test_the_page_needs_nothing_else_and_its_tags_close(which: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(which)
    html, _ = found if which == "empty" else both(found)
    page = Page(html)
    assert page.open == []
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "img", "image", "object"}
    for tag, attributes in page.tags:
        for name in ("href", "src", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith("#"), (tag, value)
    assert "url(http" not in html
    assert "@import" not in html
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    targets = {
        attributes["href"][1:] for tag, attributes in page.tags if tag == "a" and attributes.get("href")
    }
    assert targets <= set(ids)


@pytest.mark.parametrize("which", ["empty", "half", "tiny"])
def test_markdown_tables_have_as_many_cells_as_headers(which: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(which)
    _, markdown = found if which == "empty" else both(found)
    tables = 0
    width = 0
    before = ""
    for line in markdown.splitlines():
        if line.startswith("|"):
            cells = len(re.findall(r"(?<!\\)\|", line)) - 1
            if not before.startswith("|"):
                width, tables = cells, tables + 1
            assert cells == width, line
        before = line
    assert tables >= 5
    assert "\n\n\n\n" not in markdown


def test_both_pages_say_the_same_numbers(half: tuple[SuitePlan, Path]) -> None:
    html, markdown = both(half)
    row = re.search(r"\| MrT5, δ 0.5 \| 15-language weighted average \| bits per byte \| (.*) \|", markdown)
    assert row is not None
    cells = [cell.strip() for cell in row[1].split("|")]
    assert cells == ["outside", "1.0197", "1.5296", "+0.5099", "±0.0204"]
    line = "".join(
        f'<td class="number" data-label="{header}">{cell}</td>'
        for header, cell in zip(HEADERS[4:], cells[1:], strict=True)
    )
    assert f'<td class="verdict outside" data-label="verdict">outside</td>{line}' in html


# --- what they say ---------------------------------------------------------------------------------------


def test_before_anything_has_run_everything_is_said_to_be_missing(empty: tuple[str, str]) -> None:
    html, markdown = empty
    for text in (Page(html).text, markdown):
        assert "The MrT5 paper, reproduced" in text
        assert re.search(r"0 of \d+ runs are done", text)
        assert "Of 2,022 published numbers 0 are compared" in text
        assert "Smoke run" not in text
    assert markdown.count("## ") >= len(PAPER)
    for experiment in PAPER:
        assert experiment.title in markdown


def test_the_summary_counts_what_the_sections_show(half: tuple[SuitePlan, Path]) -> None:
    _, markdown = both(half)
    before = r"\|(?:(?:[^|\\]|\\.)*\|){3}"
    shown = {
        verdict: len(re.findall(rf"^{before} {verdict}(?:: [^|]*)? \| [^a-z]", markdown, re.MULTILINE))
        for verdict in ("within", "outside", "better", "not run")
    }
    [totals] = re.findall(r"^\| all \| (.*) \|$", markdown, re.MULTILINE)
    counts = [int(cell.replace(",", "")) for cell in totals.split(" | ")]
    assert counts[:4] == list(shown.values())
    assert counts[1] > 0
    assert counts[3] > 0


def test_failures_are_listed_with_their_reasons(half: tuple[SuitePlan, Path]) -> None:
    html, markdown = both(half)
    assert "multilingual_v3/fixed_60 seed 51: failed, out of memory" in Page(html).text
    assert "not run: out of memory" in markdown
    assert "analysis per\\_sample: not done" in markdown


def test_many_numbers_are_folded_and_averages_stand_open(half: tuple[SuitePlan, Path]) -> None:
    html, _ = both(half)
    section = html[
        html.index('<section id="multilingual-v3">') : html.index('<section id="per-language-v3">')
    ]
    unfolded = re.sub(r"<details.*?</details>", "", section, flags=re.DOTALL)
    assert "15-language weighted average" in unfolded
    thai = re.compile(r"<td[^>]*>Thai</td>")
    assert not thai.search(unfolded)
    assert thai.search(section)


def test_a_smoke_report_says_that_it_means_nothing(tiny: tuple[SuitePlan, Path]) -> None:
    html, markdown = both(tiny)
    assert "Smoke run: these numbers mean nothing." in Page(html).text
    assert "**Smoke run: these numbers mean nothing.**" in markdown
    assert html.index("Smoke run: ") < html.index('<section id="tiny">')


def test_a_smoke_report_judges_nothing(tiny: tuple[SuitePlan, Path]) -> None:
    """Models of seconds are within a tolerance by chance: there are no verdicts, and nothing counts them."""
    html, markdown = both(tiny)
    for text in (Page(html).text, markdown):
        words = r"\d (are )?(within|outside|better)\b|tolerance|verdict|held here|does not hold|stayed open"
        assert not re.search(words, text[text.index("Smoke run: ") :].partition("use strict")[0])
    assert "not compared" in markdown
    assert "a smoke run" in markdown
    assert markdown.count("\n| smoke |") == 2 * len(CLAIMS)


def test_what_nobody_asked_for_is_named_and_left_out(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "runs", PAPER[:2], smoke=False)
    for job in plan.jobs:
        if job.name.startswith("diagnostic_v3/"):
            job.status, job.reason = "left out", "not asked for"
    html, markdown = pages(write_report(plan, tmp_path / "report"))
    for text in (html, markdown):
        assert "Not requested: Diagnostic tasks." in text
        assert "24 of 24 runs are done." in text
    assert "## Diagnostic tasks" not in markdown
    assert "<h2>Diagnostic tasks" not in html


def test_words_of_suites_are_escaped(tiny: tuple[SuitePlan, Path]) -> None:
    html, markdown = both(tiny)
    assert "<h2>Tiny &lt;models&gt; | of everything <a " in html
    assert "## Tiny \\<models\\> \\| of everything" in markdown
    assert "What &amp; why." in html


def test_every_analysis_figure_and_claim_is_shown(tiny: tuple[SuitePlan, Path]) -> None:
    html, markdown = both(tiny)
    for words in (
        "Pearson's r over 8 of 8 samples",
        "Time on ",
        "By gate layer",
        "Softmax1 minus softmax",
        "stays within 1 point, or 2",
        "At requested rates",
        "What is deleted",
        "Deleted of each kind of byte",
        "Multiply-accumulates",
    ):
        assert words in Page(html).text, words
        assert words in markdown, words
    names = [f"tiny-{name}" for name in TINY.figures]
    names[names.index("tiny-deletion_patterns")] += "-span_corruption"
    for name in names:
        assert f"(figures/{name}.svg)" in markdown
        assert (tiny[1] / "figures" / f"{name}.svg").is_file()
    assert html.count("<figure>") == html.count("<summary>The figure in numbers</summary>") == len(names)
    for word in ("next-segment", "deleted"):  # of the examples, pooled and deleted
        assert f'<span class="{word}">' in html


def test_shares_have_no_interval_beyond_them_and_a_mean_says_of_how_many_runs_it_is() -> None:
    rows = [
        Row("all", 9, deletion_rate=rate, loss=loss, gate_precision=precision, gate_recall=0.9)
        for rate, loss, precision in ((0.0, 0.01, 0.9), (0.9, 0.5, None), (0.5, 0.2, 1.0))
    ]
    ran = [
        SimpleNamespace(name="a", seed=seed, evaluations=[SimpleNamespace(rows=[row], task="merge_ABC")])
        for seed, row in enumerate(rows)
    ]
    table = our_runs(SimpleNamespace(runs={"a": ran}))  # type: ignore[arg-type]
    assert table is not None
    shown = dict(zip(table.headers, table.rows[0], strict=True))
    assert shown["deleted, %"] == "46.7 [0.0, 100.0]"
    assert shown["cross-entropy, nats"].startswith("0.2367 [0.0000, ")
    assert shown["gate precision"] == "0.950 [0.315, 1.000] (2 of 3)"
    assert shown["gate recall"] == "0.900 [0.900, 0.900]"


def test_a_word_is_a_verdict_only_in_the_column_of_verdicts() -> None:
    table = Table(("start", "here"), [("open", "open")], words=2)
    html = html_page("Runs", "", [Section("All", tables=[table])])
    assert '<td data-label="start">open</td><td class="verdict open" data-label="here">open</td>' in html


def test_what_is_deleted_is_a_table_a_task() -> None:
    def model(task: str, *kinds: str) -> dict[str, Any]:
        letters = [{"kind": kind, "rate": 0.5} for kind in kinds]
        line = {"recipe": task, "seed": 1, "task": task, "examples": 9, "deletion_rate": 0.5}
        parts: dict[str, Any] = {"letters": letters, "kinds": [], "subsets": []}
        return line | parts | {"gate_precision": None, "gate_recall": None}

    both = [model("vowels", "vowel", "other"), model("merge", "A"), model("merge", "A")]
    _, vowels, merge = analysis_tables("deletion_patterns", {"models": both})
    assert (vowels.title, merge.title) == (
        "Deleted of each kind of letter of vowels, %",
        "Deleted of each kind of letter of merge, %",
    )
    assert (len(vowels.headers), len(merge.headers)) == (2, 3)
    assert [len(vowels.rows), len(merge.rows)] == [2, 1]
    _, alone = analysis_tables("deletion_patterns", {"models": both[:1]})
    assert alone.title == "Deleted of each kind of letter, %"


def test_where_it_was_made_is_at_the_end(tiny: tuple[SuitePlan, Path]) -> None:
    plan, _ = tiny
    for text in both(tiny):
        end = text[text.index("How it was made") :]
        for words in ("AMD EPYC, fp32, 1 thread", "torch 2.13.0", "0123456789ab", "40 min", "10 min"):
            assert words in end, words
        for job in plan.trainings:
            assert recipe_hash(job.recipe) in end
    assert str(plan.root) not in "".join(both(tiny))


def test_tolerances_are_printed_with_their_reasons(empty: tuple[str, str]) -> None:
    html, markdown = empty
    for words in ("loss of language models", "2 %", "decrease of runtime", "10 points"):
        assert words in Page(html).text
        assert words in markdown


def test_claims_say_whether_they_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = iter((True, False, None))
    monkeypatch.setattr(
        reports,
        "judge",
        lambda name, evidence: Claim(name, f"{name}!", next(verdicts), "Because.", [{"rate": 0.5}]),
    )
    experiment = replace(TINY, analyses=(), figures=(), claims=("one", "two", "three"))
    plan = make_plan(tmp_path / "runs", [experiment], smoke=False)
    html, markdown = pages(write_report(plan, tmp_path / "report"))
    assert "Of 3 claims, 1 held here, 1 did not, and 1 stayed open." in markdown
    for kind, words in (("holds", "holds"), ("does-not-hold", "does not hold"), ("open", "open")):
        assert f'<td class="verdict {kind}" data-label="here">{words}</td>' in html
    assert "one: the numbers" in markdown


# --- in a browser ----------------------------------------------------------------------------------------

WIDTHS = (380, 420, 1200, 1600)


def shown(browser: Any, where: tuple[SuitePlan, Path], width: int = 1200, **more: Any) -> Any:
    page = browser.new_page(viewport={"width": width, "height": 900}, **more)
    page.goto((where[1] / "report.html").as_uri())
    return page


def drawn_in(page: Any, box: dict[str, float]) -> set[tuple[int, ...]]:
    """Colours of a part of the window."""
    with Image.open(io.BytesIO(page.screenshot(clip=box))) as picture:
        return {colour[:3] for _, colour in picture.convert("RGB").getcolors(1 << 24)}


@pytest.mark.browser
@pytest.mark.parametrize("width", WIDTHS)
def test_verdicts_and_tolerances_are_in_sight(browser: Any, half: tuple[SuitePlan, Path], width: int) -> None:
    page = shown(browser, half, width)
    for everything in (False, True):
        if everything:
            page.evaluate("document.querySelectorAll('main details').forEach(one => { one.open = true; })")
            page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        boxes = page.evaluate(
            """[...document.querySelectorAll('td.verdict, td[data-label=tolerance]')].filter(
                 cell => cell.checkVisibility()
               ).map(cell => [cell.getBoundingClientRect().left, cell.getBoundingClientRect().right])"""
        )
        assert len(boxes) > (1000 if everything else 100)
        assert min(left for left, _ in boxes) >= 0
        assert max(right for _, right in boxes) <= width
    cell = page.locator("#multilingual-v3 td.outside").first
    cell.evaluate("cell => cell.scrollIntoView({ block: 'center' })")
    assert (179, 71, 0) in drawn_in(page, cell.bounding_box()), "its word, and nothing over it"
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", WIDTHS)
def test_headers_and_contents_stay_in_sight(browser: Any, half: tuple[SuitePlan, Path], width: int) -> None:
    page = shown(browser, half, width)
    header = page.locator("#multilingual-v3 h3:has-text('Published and ours') + .scroll thead")
    header.evaluate("head => scrollBy(0, head.getBoundingClientRect().top + 400)")
    page.wait_for_timeout(200)
    [contents] = page.locator("nav.contents").all()
    bar = contents.bounding_box()
    top = bar["height"] if width < 1000 else 0
    assert bar["y"] == 0
    assert header.locator("th").first.bounding_box()["y"] == pytest.approx(top, abs=12)
    header.get_by_role("button", name="verdict").click()  # nothing lies over it
    verdicts = page.locator("#multilingual-v3 h3:has-text('Published and ours') + .scroll td.verdict")
    found = verdicts.all_inner_texts()
    assert found == sorted(found)
    if width < 1000:
        assert contents.get_by_role("link", name="Runtime").is_hidden()
        contents.get_by_text("Contents").click()
    contents.get_by_role("link", name="Runtime").click()
    page.wait_for_timeout(200)
    assert top - 60 <= page.locator("#runtime-v3, #runtime").first.bounding_box()["y"] < 300
    assert contents.locator("[aria-current=true]").inner_text() == ("Runtime" if width > 1000 else "")
    contents.get_by_text("Back to top").click()
    assert page.evaluate("scrollY") == 0
    page.close()


@pytest.mark.browser
def test_sums_stay_below_what_they_are_of(browser: Any, half: tuple[SuitePlan, Path]) -> None:
    page = shown(browser, half)
    table = page.locator("table").first
    table.get_by_role("button", name="within").click()
    names = table.locator("td:first-child").all_inner_texts()
    assert names[-1] == "all"
    counts = [
        int(text) for text in table.locator("tbody td:nth-child(2)").all_inner_texts() if text.isdigit()
    ]
    assert counts == sorted(counts)
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", (380, 1200))
def test_letters_of_figures_can_be_read_anywhere(
    browser: Any, tiny: tuple[SuitePlan, Path], width: int
) -> None:
    page = shown(browser, tiny, width)
    sizes = page.evaluate(
        """[...document.querySelectorAll('figure svg text')].filter(one => one.checkVisibility()).map(one => {
             const { a, b } = one.getScreenCTM();
             return parseFloat(getComputedStyle(one).fontSize) * Math.hypot(a, b);
           })"""
    )
    assert len(sizes) > 50
    figures = page.locator("figure").count()
    assert page.locator("figure svg:visible").count() == figures
    held = "figure .narrow svg:visible, figure .scroll.fits svg:visible"
    assert page.locator(held).count() >= (figures - 1 if width < 1000 else figures)
    assert min(sizes) >= 9.9
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_stands_out(browser: Any, half: tuple[SuitePlan, Path], scheme: str) -> None:
    page = shown(browser, half, color_scheme=scheme)
    selectors = "p.headline, p.faint, a, h2, summary, .missing summary, td.within, td.outside, td.better, "
    colours = page.evaluate(
        """selectors => [...new Set([...document.querySelectorAll(selectors)].map(
             one => getComputedStyle(one).color))]""",
        selectors + "td.not-run, td.number",
    )
    papers = page.evaluate(
        """() => ['--paper', '--shade'].map(name => {
             document.body.style.background = `var(${name})`;
             return getComputedStyle(document.body).backgroundColor;
           })"""
    )
    assert len(colours) >= 6
    for colour in colours:
        for paper in papers:
            assert contrast(colour, paper) >= 4.5, (colour, paper)
    page.close()


def contrast(one: str, other: str) -> float:
    """Of two colours `rgb(r, g, b)`, as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.browser
def test_it_prints(browser: Any, half: tuple[SuitePlan, Path], tmp_path: Path) -> None:
    page = shown(browser, half, color_scheme="dark")
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert 20 < len(re.findall(rb"/Type /Page\b", pdf)) < 80, "what is folded is not printed"
    page.set_viewport_size({"width": 680, "height": 900})
    page.emulate_media(media="print")
    looks = page.evaluate(
        """() => {
             const look = (selector, name) => getComputedStyle(document.querySelector(selector))[name];
             return [look('body', 'backgroundColor'), look('nav', 'display'), look('a', 'color'),
                     look('table thead', 'display'), look('th', 'position'), look('th button', 'display'),
                     look('.scroll', 'overflow'), look('figure svg', 'filter')];
           }"""
    )
    black = "rgb(0, 0, 0)"
    # A header that is positioned, a button, or in a box that scrolls is not repeated on each page.
    assert looks == [
        "rgb(255, 255, 255)", "none", black, "table-header-group", "static", "contents", "visible", "none",
    ]  # fmt: skip
    assert page.evaluate("document.documentElement.scrollWidth") <= 680
    page.close()


# --- writing ---------------------------------------------------------------------------------------------


def test_without_matplotlib_there_is_a_report_that_says_how_to_get_figures(
    tiny: tuple[SuitePlan, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "can_draw", lambda: False)
    html, markdown = pages(write_report(tiny[0], tmp_path))
    for text in (html, markdown):
        assert "matplotlib is not installed" in text
        assert "pip install 'matplotlib" in text.replace("&#39;", "'")
    assert "<svg" not in html
    assert not (tmp_path / "figures").exists()


def test_figures_of_an_earlier_report_go(tiny: tuple[SuitePlan, Path], tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "old-macs.svg").write_text("<svg/>")
    write_report(tiny[0], tmp_path)
    assert not (tmp_path / "figures" / "old-macs.svg").exists()
    assert (tmp_path / "figures" / "tiny-macs.svg").exists()


def test_an_unknown_figure_is_refused(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "runs", [replace(TINY, figures=("mcas",), claims=())])
    with pytest.raises(UserError, match="no figure is named 'mcas'"):
        write_report(plan, tmp_path / "report")


def test_a_file_that_cannot_be_read_is_named_and_the_rest_reported(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "runs", PAPER[1:2], smoke=False)
    pretend(plan)
    names = ("eval/damaged.json", "meta.json")
    paths = [job.run.path / name for job, name in zip(plan.trainings, names, strict=False)]
    for path in paths:
        path.write_text("{")
    notes: list[str] = []
    for text in pages(write_report(plan, tmp_path / "report", notes.append)):
        for path in paths:
            assert f"{path} cannot be read" in text.replace("\\", "")
    assert len(notes) == len(paths)
    for path in paths:
        path.unlink()
    assert text.count("within |") == pages(write_report(plan, tmp_path / "report"))[1].count("within |") > 0


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    plan = make_plan(tmp_path / "runs", [])
    with pytest.raises(UserError, match="report cannot be written: Not a directory"):
        write_report(plan, tmp_path / "file" / "report")


# --- words -----------------------------------------------------------------------------------------------


@given(st.text(max_size=30))
def test_any_text_fits_into_a_markdown_cell(text: str) -> None:
    cell = markdown_cell(text)
    assert "\n" not in cell
    assert not re.search(r"(?<!\\)(?:\\\\)*[|<`]", cell)
    assert re.sub(r"\\(.)", r"\1", cell) == text.replace("\n", " ")


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (5.1428e-05, "nats/token", "5.14e\N{MINUS SIGN}05"),
        (0.780512, "nats/token", "0.7805"),
        (80.3, "percent", "80.30"),
        (99.998741026, "percent", "99.9987"),
        (-0.08, "r", "\N{MINUS SIGN}0.080"),
        (311455522304, "MACs", "311,455,522,304"),
        (5010, "count", "5,010"),
    ],
)  # fmt: skip
def test_numbers_are_printed_as_their_unit_is(value: float, unit: str, expected: str) -> None:
    assert in_unit(value, unit) == expected


def test_what_is_no_number_is_a_dash() -> None:
    assert number(None) == number(float("nan")) == "\N{EN DASH}"


def test_the_numbers_of_a_column_are_of_one_style() -> None:
    """5.14e-05 beside 0.0053 cannot be compared at a glance, nor 4.59e-03 with it."""

    def shown(*values: float) -> list[str]:
        claim = Claim("a_claim", "", True, "", [{"model": "m", "loss": value} for value in values])
        return [loss for _, loss in evidence_of(claim).rows]

    assert shown(0.00459, 0.0053) == ["0.0046", "0.0053"]
    assert shown(0.00459, 5.14e-05) == ["4.59e\N{MINUS SIGN}03", "5.14e\N{MINUS SIGN}05"]
    assert shown(math.nan, 0.00459, 0.0) == ["\N{EN DASH}", "4.59e\N{MINUS SIGN}03", "0"]
