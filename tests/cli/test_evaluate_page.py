"""`mrt5 evaluate --html`, and the dial: a page of what the terminal shows, and exports at a rate of it."""

from __future__ import annotations

import json
import re
import shlex
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_runs import NO_GATE, SHORTENERS, make_run
from typer.testing import CliRunner

from mrt5cli.cli import app
from mrt5cli.errors import RunFailed
from mrt5cli.evaluation import evaluate as evaluation
from mrt5cli.report import page as reports

PAIRS = "noisy\tclean\tlanguage\nhelo there\thello there\ten\nsalut,  toi\tsalut toi\tfr\nwrold\tworld\ten\n"


def call(*words: object) -> Any:
    return CliRunner().invoke(app, list(map(str, words)))


def paged(page: Path, *words: object) -> tuple[str, str]:
    """What is printed, and what is in the page."""
    result = call("evaluate", *words, "--html", page)
    assert result.exit_code == 0, result.output
    return result.stdout, page.read_text(encoding="utf-8")


def cells(page: str, heading: str) -> list[list[str]]:
    """Rows of the first table after a heading."""
    table = page[page.index(heading) :].partition("<table")[2].partition("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr>")[1:]]
    return [[unescape(cell) for cell in row] for row in rows if row]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"), "mrt5")


def test_the_page_has_the_numbers_of_the_terminal(run: Path, tmp_path: Path) -> None:
    printed, page = paged(
        tmp_path / "dial.html", run, "--deletion-rate", "0,0.2,0.6,0.2", "--out", tmp_path / "r"
    )
    lines = [line.split() for line in printed.splitlines() if line.startswith(("mrt5-seed3 ", "at "))]
    assert len(lines) == 4
    shown = cells(page, "<h3>" if "<h3>" in page else "</figure>")
    for line, row in zip(lines, shown, strict=False):
        assert line == " ".join(row).split()
    document = json.loads((tmp_path / "r").read_text())
    nothing = document["models"][1]
    assert nothing["rows"][-1]["deletion_rate"] == nothing["calibration"]["reached"] == 0.0
    assert nothing["rows"][-1]["gate_recall"] == 0.0
    for model, row in zip(document["models"], shown, strict=False):
        assert row[1] == f"{model['threshold']:.4g}"
    assert page.count("<figure>") == page.count("The figure in numbers") == 1
    for words in ("batches of 8", "How it was measured", "float32", document["code"]):
        assert words in page
    assert not re.search(r'(?:href|src)="(?!#)', page)
    assert "--threshold" in page[page.index("Export") :]


def test_an_export_deletes_as_the_dial_says(run: Path, tmp_path: Path) -> None:
    """The command as it is printed, and the same rate said to `convert` itself; on the text it was set by."""
    printed, page = paged(tmp_path / "dial.html", run, "--deletion-rate", "0.4", "--out", tmp_path / "r")
    calibration = json.loads((tmp_path / "r").read_text())["models"][1]["calibration"]
    [command] = re.findall(r"^ *(mrt5 convert .*)$", printed, re.MULTILINE)
    assert unescape(command) in unescape(page)
    words = shlex.split(command, comments=True)
    words[words.index("DEST")] = str(tmp_path / "by-threshold")
    assert call(*words[1:]).exit_code == 0
    assert call("convert", run, tmp_path / "by-rate", "--to", "hub", "--deletion-rate", 0.4).exit_code == 0
    for export in ("by-threshold", "by-rate"):
        result = call("evaluate", tmp_path / export, "--split", "validation", "--json")
        assert result.exit_code == 0, result.output
        [model] = json.loads(result.stdout)["models"]
        assert model["threshold"] == pytest.approx(calibration["threshold"], abs=1e-6)
        assert model["rows"][-1]["deletion_rate"] == calibration["reached"] == pytest.approx(0.4, abs=0.01)


def test_a_gate_that_is_told_its_rate_has_no_threshold_moved(tmp_path: Path) -> None:
    run = make_run(tmp_path, "told", shortener=SHORTENERS["quantile_gate"])
    assert call("evaluate", run).exit_code == 0
    saved = run / "eval" / "at-rates.json"
    printed, page = paged(tmp_path / "dial.html", run, "--deletion-rate", "0,0.3", "--out", saved)
    assert "the gate is conditioned on the rate" in printed
    assert "told-seed3 conditioned on each rate: " in page and "told-seed3, at its default rate" in page
    assert call("convert", run, tmp_path / "card", "--to", "hub", "--deletion-rate", 0.4).exit_code == 0
    card = " ".join((tmp_path / "card" / "README.md").read_text().split())
    assert ", rate set to 30 %" in card and ", before its rate was set" in card
    assert "replaces the configured threshold, which sets the gate's rate to 40 %," in card
    for text in (printed, page, card):
        assert not re.search(r"threshold (was )?moved|untrained", text)


def test_a_gate_that_is_all_or_nothing_says_which_rates_there_are(tmp_path: Path) -> None:
    run = make_run(tmp_path, "saturated")
    weights = load_file(run / "model" / "model.safetensors")
    [name] = [name for name in weights if name.endswith("delete_gate.feed_forward.weight")]
    weights[name] = weights[name] * 1e6
    save_file(weights, run / "model" / "model.safetensors", metadata={"format": "pt"})
    (run / "model" / "manifest.json").unlink(missing_ok=True)
    printed, page = paged(tmp_path / "dial.html", run, "--deletion-rate", "0.2", "--out", tmp_path / "r")
    model = json.loads((tmp_path / "r").read_text())["models"][1]
    reached = f"{100 * model['calibration']['reached']:.1f} %"
    told = " ".join(printed.split())
    assert f"which deletes {reached} of" in told
    assert "20 % cannot be reached: " in told
    assert f"of positions have the same gate value, -30, so a threshold deletes nothing or {reached}" in told
    assert "20 % cannot be reached" in page


@pytest.mark.parametrize("kind", ["byt5", "random", "fixed", "bp", "cp"])
def test_what_has_no_dial_says_so(kind: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, kind, shortener=NO_GATE if kind == "byt5" else SHORTENERS[kind])
    result = call("evaluate", run, "--deletion-rate", "0.4", "--html", tmp_path / "dial.html")
    told = " ".join(result.stderr.split())
    assert result.exit_code == 2
    assert "has no learned delete gate" in told
    assert "so no threshold can set its deletion rate" in told
    assert not (tmp_path / "dial.html").exists()


def task(folder: Path) -> dict[str, Any]:
    """Of two languages."""
    (folder / "pairs").mkdir()
    for split in ("train", "validation", "test"):
        (folder / "pairs" / f"{split}.tsv").write_text(PAIRS)
    return {
        "kind": "text2text",
        "source": {"kind": "files", "path": str(folder / "pairs")},
        **{"input": "Correct: {noisy}", "target": "{clean}", "language_column": "language"},
        **{"input_length": 32, "target_length": 12, "metrics": ["cer", "exact_match"]},
    }


def test_languages_have_a_figure_and_each_run_its_table(tmp_path: Path) -> None:
    both = task(tmp_path)
    one = make_run(tmp_path, "one", task=both)
    other = make_run(tmp_path, "other", task=both, shortener=NO_GATE)
    printed, page = paged(tmp_path / "languages.html", one, "--compare", other)
    assert page.count("<figure>") == 1
    for words in ("English", "French"):
        assert words in page[page.index("<svg") : page.index("</svg>")]
    for name in ("one-seed3", "other-seed3"):
        rows = cells(page, f"<summary>{name}, by language</summary>")
        assert [row[0] for row in rows] == ["en", "fr", "total"]
    for heading in re.findall(r"^(\S.*) \((?:paired bootstrap|McNemar)", printed, re.MULTILINE):
        assert f"<h3>{heading}" in page
    _, page = paged(tmp_path / "dial.html", one, "--deletion-rate", "0.5")
    assert page.count("<figure>") == 2
    assert page.index("character error rate") > 0


def test_the_page_of_an_evaluation_that_failed_has_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, "mrt5", task=task(tmp_path))
    measure, failures = evaluation._Subset.measure, []

    def failing(part: Any) -> Any:
        if part.subset == "fr" and part.options.threshold is not None:
            failures.append(part)
            raise RunFailed("the disk with fr is gone")
        return measure(part)

    monkeypatch.setattr(evaluation._Subset, "measure", failing)
    result = call("evaluate", run, "--deletion-rate", "0.5", "--html", tmp_path / "part.html")
    assert result.exit_code == 1
    assert len(failures) == 1
    page = (tmp_path / "part.html").read_text(encoding="utf-8")
    assert "Unfinished: the disk with fr is gone." in page
    assert [row[0] for row in cells(page, "Results: mrt5-seed3 <a")] == ["en", "fr", "total"]
    assert [row[0] for row in cells(page, "Results: mrt5-seed3 at 50 % <a")] == ["en"]
    assert "<svg" not in page


def test_without_matplotlib_a_page_says_how_to_get_figures(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "can_draw", lambda: False)
    _, page = paged(tmp_path / "dial.html", run, "--deletion-rate", "0.5", "--limit", 8)
    assert "<svg" not in page
    assert "pip install 'matplotlib" in unescape(page)
    assert "at 50 %" in page


def test_two_files_of_one_name_are_refused(run: Path, tmp_path: Path) -> None:
    result = call("evaluate", run, "--html", tmp_path / "same", "--out", tmp_path / "same")
    assert result.exit_code == 2
    assert "--out and --html both name" in result.stderr


@pytest.mark.browser
@pytest.mark.parametrize("width", [380, 1200])
def test_it_fits(browser: Any, run: Path, tmp_path: Path, width: int) -> None:
    paged(tmp_path / "dial.html", run, "--deletion-rate", "0,0.2,0.4,0.6")
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto((tmp_path / "dial.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for label in ("threshold", "validation %", "loss"):
        for cell in page.locator(f"td[data-label='{label}']").all():
            box = cell.bounding_box()
            assert box is None or (box["x"] >= 0 and box["x"] + box["width"] <= width)
    page.close()
