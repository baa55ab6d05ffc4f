"""The report: both pages of plans that are empty, half done and done, whole and in need of nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_plans import make_plan, pretend, train

from mrt5cli.analysis.across_runs import run_analysis
from mrt5cli.errors import UserError
from mrt5cli.fingerprint import recipe_hash
from mrt5cli.report import page as reports
from mrt5cli.report.claims import CLAIMS, Claim
from mrt5cli.report.html import markdown_cell
from mrt5cli.report.page import write_report
from mrt5cli.report.tables import in_unit, number
from mrt5cli.suite.jobs import Experiment, SuitePlan
from mrt5cli.suite.suites import load_suite
from mrt5cli.writing import write_json

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
    analyses=("per_sample", "compute", "runtime", "deletion_patterns", "gate_placement", "softmax1"),
    figures=("loss_against_reduction", "per_language", "gate_placement", "macs", "per_sample",
             "deletion_patterns", "runtime"),
    claims=tuple(CLAIMS),
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[SuitePlan, Path]:
    """A smoke plan with every analysis, figure and claim there is."""
    root = tmp_path_factory.mktemp("tiny")
    plan = make_plan(root / "runs", [TINY])
    train(plan, runtime=True)
    for name in TINY.analyses:
        write_json(plan.analysis(TINY, name), run_analysis(name, plan.experiment_runs(TINY)))
    write_report(plan, root / "report")
    return plan, root / "report"


def both(where: tuple[SuitePlan, Path]) -> tuple[str, str]:
    return pages([where[1] / "report.html", where[1] / "report.md"])


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
    assert cells == ["1.0197", "1.5296", "+0.5099", "±0.0204", "outside"]
    line = '</td><td class="number">'.join(cells[:4])
    assert f'<td class="number">{line}</td><td class="verdict outside">outside</td>' in html


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
    shown = {
        verdict: len(re.findall(rf"^\| .*\| {verdict}(?:: [^|]*)? \|$", markdown, re.MULTILINE))
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
    assert "<td>Thai</td>" not in unfolded
    assert "<td>Thai</td>" in section


def test_a_smoke_report_says_that_it_means_nothing(tiny: tuple[SuitePlan, Path]) -> None:
    html, markdown = both(tiny)
    assert "Smoke run: these numbers mean nothing." in Page(html).text
    assert "**Smoke run: these numbers mean nothing.**" in markdown
    assert Page(html).text.index("Smoke run") < Page(html).text.index("Tiny")


def test_what_nobody_asked_for_is_named_and_left_out(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "runs", PAPER[:2], smoke=False)
    for job in plan.jobs:
        if job.name.startswith("diagnostic_v3/"):
            job.status, job.reason = "left out", "not asked for"
    html, markdown = pages(write_report(plan, tmp_path / "report"))
    for text in (html, markdown):
        assert "Not asked for: Diagnostic tasks." in text
        assert "24 of 24 runs are done." in text
    assert "## Diagnostic tasks" not in markdown
    assert "<h2>Diagnostic tasks</h2>" not in html


def test_words_of_suites_are_escaped(tiny: tuple[SuitePlan, Path]) -> None:
    html, markdown = both(tiny)
    assert "<h2>Tiny &lt;models&gt; | of everything</h2>" in html
    assert "## Tiny \\<models\\> \\| of everything" in markdown
    assert "What &amp; why." in html


def test_every_analysis_figure_and_claim_is_shown(tiny: tuple[SuitePlan, Path]) -> None:
    html, markdown = both(tiny)
    for words in (
        "Pearson's r over 8 of 8 samples",
        "Time on ",
        "By the gate's layer",
        "Softmax1 minus softmax",
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
    assert html.count("<svg") == len(names)
    assert "held here" in markdown
    for word in ("next-segment", "deleted"):  # of the examples, pooled and deleted
        assert f'<span class="{word}">' in html


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
    plan = make_plan(tmp_path / "runs", [experiment])
    html, markdown = pages(write_report(plan, tmp_path / "report"))
    assert "Of 3 claims 1 held here, 1 did not, 1 stayed open." in markdown
    for kind, words in (("holds", "holds"), ("does-not-hold", "does not hold"), ("open", "open")):
        assert f'<td class="verdict {kind}">{words}</td>' in html
    assert "one: the numbers" in markdown


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
    with pytest.raises(UserError, match="no figure is called 'mcas'"):
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
