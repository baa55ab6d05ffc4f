"""`mrt5 inspect-deletions`: deletions are shown, counted and printed as JSON; errors are one sentence."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import NO_GATE, SHORTENERS, SPANS, make_run
from typer.testing import CliRunner

from mrt5cli.cli import app


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        "mrt5": make_run(folder, "mrt5"),
        "byt5": make_run(folder, "byt5", shortener=NO_GATE),
        "spans": make_run(folder, "spans", task=SPANS),
        **{
            name: make_run(folder, name.replace("_", "-"), shortener=section)
            for name, section in SHORTENERS.items()
        },
        "bp_spans": make_run(folder, "bp-spans", task=SPANS, shortener=SHORTENERS["bp"]),
    }


def inspect(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["inspect-deletions", *map(str, arguments), "--device", "cpu"])


def document(*arguments: object) -> dict[str, Any]:
    result = inspect(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def ids_of(text: str) -> list[int]:
    return [byte + 3 for byte in text.encode()]


def test_the_rate_that_a_threshold_requests_is_shown_and_stored(runs: dict[str, Path]) -> None:
    for words, threshold, rate in (((), -15.0, 0.5), (("--threshold=-21",), -21.0, 0.3)):
        result = inspect(runs["quantile_gate"], "--text", "abc", *words)
        assert (
            f"gate threshold {threshold:g}, which requests a deletion rate of {100 * rate:g} %"
            in result.stdout
        )
        found = document(runs["quantile_gate"], "--text", "abc", *words)
        assert (found["threshold"], found["requested_deletion_rate"]) == (threshold, pytest.approx(rate))
    assert "requests" not in inspect(runs["mrt5"], "--text", "abc").stdout
    assert "requested_deletion_rate" not in document(runs["mrt5"], "--text", "abc")


def test_text(runs: dict[str, Path]) -> None:
    text = "Wo ist das? где это?"
    result = inspect(runs["mrt5"], "--text", text)

    assert result.exit_code == 0, result.output
    assert "[-" in result.stdout
    assert "[-...-] deleted" in result.stdout
    assert "\x1b" not in result.stdout
    assert "trained on strings that begin with '#'" in result.stderr
    told = document(runs["mrt5"], "--text", text)
    assert [i for row in told["rows"] for i in row["ids"] if i != 1] == ids_of(text)
    assert len(told["rows"]) == 2, "pieces of the recipe's 16 positions"
    assert f"deletes {told['deleted']} of {told['positions']} positions" in result.stdout
    assert told["deletion_rate"] == pytest.approx(told["deleted"] / told["positions"])
    assert sum(sum(row["deleted"]) for row in told["rows"]) == told["deleted"]
    assert sum(kind["count"] for kind in told["kinds"]) == told["positions"]
    assert {kind["kind"] for kind in told["kinds"]} >= {"Cyrillic: lead bytes", "spaces", "EOS"}
    assert all(kind["kind"] in result.stdout for kind in told["kinds"])
    assert "gate_precision" not in told


def test_the_runs_own_task(runs: dict[str, Path]) -> None:
    result = inspect(runs["mrt5"])

    assert result.exit_code == 0, result.output
    assert result.stdout.count("target: ") == 5
    assert "of the deleted letters are not needed" in result.stdout
    told = document(runs["mrt5"], "--limit", 3)
    assert len(told["rows"]) == 3
    for row in told["rows"]:
        left = [i for i, needless in zip(row["ids"], row["deletable"], strict=True) if not needless]
        assert left[-len(row["target"]) :] == row["target"], (
            "a target is the source without what is deletable"
        )
    assert 0 <= told["gate_precision"] <= 1


def test_span_corruption_names_its_sentinels(runs: dict[str, Path]) -> None:
    result = inspect(runs["spans"], "--limit", 2)

    assert result.exit_code == 0, result.output
    assert "S0⟩" in result.stdout
    assert "sentinels" in result.stdout
    assert "example 2, " in result.stdout
    assert "target" not in result.stdout


def test_another_task(runs: dict[str, Path]) -> None:
    told = document(runs["mrt5"], "--task", "span_corruption", "--limit", 1)

    assert any(kind["kind"] == "sentinels" for kind in told["kinds"])


def test_threshold(runs: dict[str, Path]) -> None:
    few = document(runs["mrt5"], "--text", "some plain words", "--threshold", -29)
    many = document(runs["mrt5"], "--text", "some plain words", "--threshold", -0.5)

    assert few["deleted"] < many["deleted"]
    assert few["threshold"] == -29


@pytest.mark.parametrize("name", ["random", "fixed"])
def test_gates_that_learn_nothing(name: str, runs: dict[str, Path]) -> None:
    told = document(runs[name], "--text", "some plain words")

    assert told["deletion_type"] == name
    assert 0 < told["deleted"] < told["positions"]
    assert told == document(runs[name], "--text", "some plain words")
    assert "segments" not in told
    assert all(row["segments"] is None for row in told["rows"])
    assert "[-" in inspect(runs[name], "--text", "some plain words").stdout


@pytest.mark.parametrize("name", ["bp", "bp_entropy", "bp_unigram", "bp_batch", "cp", "cp_batch"])
def test_pooled_segments(name: str, runs: dict[str, Path]) -> None:
    text = "Wo ist das? где это, was?"
    result = inspect(runs[name], "--text", text)

    assert result.exit_code == 0, result.output
    told = document(runs[name], "--text", text)
    assert [i for row in told["rows"] for i in row["ids"] if i != 1] == ids_of(text)
    for row in told["rows"]:
        covered = sum(length for _, length in row["segments"])
        starts = {start for start, _ in row["segments"]}
        assert [start for start, _ in row["segments"]] == sorted(starts)
        assert row["deleted"] == [int(i not in starts) for i in range(len(row["ids"]))]
        assert row["gate"] is None
        assert row["marked"] in result.stdout
        # What the reference's rule drops has its own bar.
        assert row["marked"].count("|") == len(starts) - 1 + (covered < len(row["ids"]))
    summary = told["segments"]
    assert summary["count"] == sum(len(row["segments"]) for row in told["rows"])
    assert summary["count"] == told["positions"] - told["deleted"]
    pooled = sum(line["length"] * line["count"] for line in summary["lengths"])
    assert pooled + summary["dropped_positions"] == told["positions"]
    assert summary["mean_length"] == pytest.approx(pooled / summary["count"])
    assert (summary["dropped_positions"] > 0) == (name == "cp_batch")
    assert ("fill no window" in result.stdout) == (name == "cp_batch")
    assert told["threshold"] is None
    assert f"pools {told['positions']} positions into {summary['count']} segments (" in result.stdout
    assert "| between pooled segments, each of which becomes one position" in result.stdout
    assert "deleted" not in result.stdout
    assert all(kind["kind"] in result.stdout for kind in told["kinds"])
    assert told == document(runs[name], "--text", text), "draws repeat themselves"


def test_pooled_examples_of_a_task(runs: dict[str, Path]) -> None:
    result = inspect(runs["cp"])

    assert result.exit_code == 0, result.output
    assert result.stdout.count("target: ") == 5
    assert result.stdout.count("% removed by pooling") == 5
    assert "not needed for" not in result.stdout, "what is pooled is not lost"
    assert "gate_precision" not in document(runs["cp"])
    spans = inspect(runs["bp_spans"], "--limit", 2)
    assert spans.exit_code == 0, spans.output
    assert "S0⟩" in spans.stdout
    assert "sentinels" in spans.stdout


def test_a_row_shorter_than_the_window(runs: dict[str, Path]) -> None:
    for name in ("cp", "cp_batch"):
        told = document(runs[name], "--text", "a")
        assert told["rows"][0]["segments"] == [[0, 2]]


def test_a_file_of_any_bytes(runs: dict[str, Path], tmp_path: Path) -> None:
    raw = bytes(range(256)) * 2
    (tmp_path / "raw").write_bytes(raw)

    told = document(runs["mrt5"], "--file", tmp_path / "raw", "--limit", 99)

    assert [i - 3 for row in told["rows"] for i in row["ids"] if i != 1] == list(raw)
    assert any(kind["kind"] == "bytes that are not UTF-8" for kind in told["kinds"])


def test_a_long_file_is_cut_and_says_so(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("word " * 200)

    result = inspect(runs["mrt5"], "--file", tmp_path / "long.txt", "--limit", 2)

    assert "only the first 30 of 1,000 bytes are inspected" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{byt5}", "--text", "abc"], "byt5-seed3 has no delete gate: a plain ByT5 deletes nothing"),
        (["{byt5}"], "needs a run with a shortener; `mrt5 pretrain local_text` trains one"),
        (["{gone}"], "gone-seed3 reads no source: its encoder sees a single EOS instead of the text"),
        (["{gone}", "--threshold", "-3"], "gone-seed3 reads no source"),
        (
            ["{bp}", "--threshold", "-3"],
            "bp-seed3 pools segments, whose ends do not depend on gate values, so",
        ),
        (["{cp}", "--threshold", "-3"], "cp-seed3 pools every 3 positions, regardless of their content, so"),
        (["{random}", "--threshold", "-3"], "random-seed3 deletes at random"),
        (["{fixed}", "--threshold", "-3"], "--threshold -3 has no effect"),
        (["{mrt5}", "--text", ""], "--text is empty"),
        (["{mrt5}", "--file", "{mrt5}/nothing.txt"], "nothing.txt cannot be read: No such file"),
        (["{mrt5}", "--file", "{mrt5}"], "Is a directory"),
        (["{mrt5}", "--text", "a", "--task", "copy"], "--text, --file and --task exclude each other"),
        (["{mrt5}", "--text", "a", "--threshold", "3"], "the gate's range, -30 (delete) to 0 (keep)"),
        (["{mrt5}/checkpoints"], "is neither a run (no recipe.yaml) nor a checkpoint"),
        (["{mrt5}", "--task", "speling"], "no recipe 'speling'"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    arguments: list[str], sentence: str, runs: dict[str, Path]
) -> None:
    result = inspect(*(argument.format(**runs) for argument in arguments))

    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert not result.stdout


def test_an_empty_file(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").touch()

    result = inspect(runs["mrt5"], "--file", tmp_path / "empty")

    assert result.exit_code == 2
    assert "empty is empty\nhint: give at least one byte" in result.stderr


@pytest.mark.parametrize(("setting", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colour_only_on_a_terminal_that_wants_it(
    setting: dict[str, str], coloured: bool, runs: dict[str, Path]
) -> None:
    """A pseudo-terminal in place of the user's."""
    import pty

    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "mrt5cli",
        "inspect-deletions",
        str(runs["mrt5"]),
        "--text",
        "hello there",
    ]
    with subprocess.Popen(
        command,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**environment, **setting, "TERM": "xterm-256color", "HF_HUB_OFFLINE": "1"},
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:  # how Linux reports that the other side has closed
            pass
        assert process.stderr is not None
        errors = process.stderr.read().decode()
    os.close(ours)

    assert process.returncode == 0, errors
    text = shown.decode()
    assert ("\x1b[2;9m" in text) == coloured
    assert ("[-" in text) == (not coloured)


def test_a_pipe_that_cannot_hold_the_marks_gets_their_codes(runs: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "mrt5cli", "inspect-deletions", str(runs["mrt5"]), "--text", "жест"]

    done = subprocess.run(
        command,
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "HF_HUB_OFFLINE": "1"},
    )

    assert done.returncode == 0, done.stderr.decode()
    assert b"\\u27e8EOS\\u27e9" in done.stdout


# --- several models, checkpoints, a page ---


@pytest.fixture(scope="module")
def history(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with two checkpoints."""
    run = tmp_path_factory.mktemp("history") / "run"
    shutil.copytree(runs["mrt5"], run)
    for step in (100, 2000):
        shutil.copytree(run / "model", run / "checkpoints" / f"step-{step:08d}")
    return run


def test_a_gate_value_of_the_document_is_the_number_itself(runs: dict[str, Path]) -> None:
    text = "some plain words"
    values = sorted(value for row in document(runs["mrt5"], "--text", text)["rows"] for value in row["gate"])

    for value in values[2:6]:
        told = document(runs["mrt5"], "--text", text, "--threshold", repr(value))
        assert told["deleted"] == sum(other <= value for other in values)


def test_scripts_are_counted_too(runs: dict[str, Path]) -> None:
    told = document(runs["mrt5"], "--text", "Wo, где?")

    found = {line["script"]: line["count"] for line in told["scripts"]}
    assert found == {"Latin": 2, "Cyrillic": 6, "shared": 3, "EOS": 1}
    assert sum(line["deleted"] for line in told["scripts"]) == told["deleted"]


def test_several_models_read_the_same(runs: dict[str, Path]) -> None:
    text = "some plain words, in more than one piece"
    names = [runs["mrt5"], runs["spans"], runs["bp"], runs["bp_batch"]]
    result = inspect(*names, "--text", text)

    assert result.exit_code == 0, result.output
    models = document(*names, "--text", text)["models"]
    assert [model["name"] for model in models] == ["mrt5-seed3", "spans-seed3", "bp-seed3", "bp-batch-seed3"]
    assert len({str([row["ids"] for row in model["rows"]]) for model in models}) == 1
    lines = [line.split(maxsplit=2) for line in result.stdout.splitlines() if line.startswith("  ")]
    told = [
        [model["name"], f"{100 * row['deletion_rate']:.1f}", f"%  {row['marked']}"]
        for rows in zip(*(model["rows"] for model in models), strict=True)
        for model, row in zip(models, rows, strict=True)
    ]
    assert lines[: len(told)] == told
    for name, model in zip(("mrt5", "bp_batch"), models[::3], strict=True):
        assert model == document(runs[name], "--text", text), "it draws, and reads, what it does alone"
    assert "spans-seed3 deletes" in result.stdout
    assert "bp-seed3 pools" in result.stdout
    alone = inspect(runs["spans"], "--limit", 1, "--json")
    beside = inspect(runs["spans"], runs["mrt5"], "--limit", 1, "--json")
    assert json.loads(beside.stdout)["models"][0] == json.loads(alone.stdout)
    assert "all models read the task of spans-seed3; mrt5-seed3 had another task in training" in " ".join(
        beside.stderr.split()
    )


def test_lines_of_a_text_stand_below_the_name_of_a_model(runs: dict[str, Path]) -> None:
    result = inspect(runs["mrt5"], runs["bp"], "--text", "a\nb")

    (row,) = document(runs["mrt5"], "--text", "a\nb")["rows"]
    assert f"  mrt5-seed3   {100 * row['deletion_rate']:.1f} %\n{row['marked']}\n" in result.stdout


def test_a_large_page_says_what_makes_it_smaller(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = ["--text", "twelve bytes", "--html", tmp_path / "page.html"]
    assert "--limit" not in inspect(runs["mrt5"], *large).stderr

    monkeypatch.setattr("mrt5cli.commands.inspect_deletions.MANY_POSITIONS", 12)

    assert "this page shows 13 bytes" in inspect(runs["mrt5"], *large).stderr
    assert "use a smaller --limit to speed it up" in " ".join(inspect(runs["mrt5"], *large).stderr.split())


def test_a_heat_map_in_the_terminal_is_a_line_a_checkpoint(history: Path) -> None:
    result = inspect(history, "--heatmap", "--limit", 1)

    assert result.exit_code == 0, result.output
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert [line[:10] for line in lines[1:4]] == ["step 100  ", "step 2,000", "finished  "]
    assert "run has only 2 checkpoints, because it was trained with training.keep_checkpoints=2" in " ".join(
        result.stderr.split()
    )
    told = document(history, "--heatmap", "--limit", 1)["checkpoints"]
    assert [one["step"] for one in told] == [100, 2000, None]
    assert lines[1].endswith(told[0]["rows"][0]["marked"])
    assert told[0]["deleted"] == document(history, "--limit", 1)["deleted"]


def test_a_page_holds_the_text_of_every_model_and_no_markup_of_it(
    runs: dict[str, Path], history: Path, tmp_path: Path
) -> None:
    text = "</script><script>alert(1)</script>"
    for number, arguments in enumerate(([runs["mrt5"], runs["bp"]], [history, "--heatmap"])):
        page = tmp_path / "new folder" / f"{number}.html"
        result = inspect(*arguments, "--text", text, "--html", page)

        assert result.exit_code == 0, result.output
        assert f"{page}" in result.stdout.replace("\n", " ")
        html = page.read_text("utf-8")
        assert html.count("<script") == html.count("</script") == 2
        # The tags that are there, and their text: what is shown can be read back.
        first = re.search(r'data-model="0">(.*?)</p>', html)
        assert first is not None
        assert unescape(re.sub("<[^>]*>", "", first[1])).startswith("</script><scrip"[: 15 if number else 99])
    told = json.loads(inspect(runs["mrt5"], "--text", text, "--html", page, "--json").stdout)
    assert told == document(runs["mrt5"], "--text", text)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{mrt5}", "{byt5}", "--text", "abc"], "byt5-seed3 has no delete gate"),
        (["{mrt5}", "{bp}", "--text", "abc", "--threshold", "-3"], "bp-seed3 pools segments"),
        (["{mrt5}", "{bp}", "--heatmap"], "--heatmap shows the checkpoints of one run, but 2 were named"),
        (["{mrt5}/model", "--heatmap"], "--heatmap"),
        (["{history}@step-100", "--heatmap"], "--heatmap shows all checkpoints of a run, and"),
        (["{mrt5}", "--file", "{mrt5}/x", "--html", "{mrt5}/x"], "--file and --html both name"),
        (["{mrt5}", "--heatmap"], "mrt5-seed3 has no checkpoints left"),
        (["{mrt5}", "--html", "{mrt5}"], "cannot be written: it is not a file"),
    ],
)
def test_what_is_wrong_with_several_or_a_page_is_said_in_a_sentence(
    arguments: list[str], sentence: str, runs: dict[str, Path], history: Path
) -> None:
    result = inspect(*(argument.format(**runs, history=history) for argument in arguments))

    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert not result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect-deletions", "run", "--text", ""],
        ["inspect-deletions", "run", "--text", "a", "--task", "copy"],
        ["inspect-deletions", "run", "--file", "no such file"],
        ["inspect-deletions", "run", "other", "--heatmap"],
        ["evaluate", "run", "--deletion-rate", "20%"],
        ["evaluate", "run", "--out", "same", "--html", "same"],
    ],
)
def test_a_slip_of_the_command_line_is_said_before_torch_is_imported(arguments: list[str]) -> None:
    code = (
        "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); "
        f"from mrt5cli.cli import main; sys.argv[1:] = {arguments}; sys.exit(main())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (result.returncode, result.stdout.strip()) == (2, "False"), result.stderr


def test_runs_of_one_name_are_told_apart(runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["mrt5"], other := tmp_path / runs["mrt5"].name)

    models = document(runs["mrt5"], other, runs["bp"], "--text", "abc")["models"]

    assert [one["name"] for one in models] == [str(runs["mrt5"]), str(other), "bp-seed3"]


def test_how_far_it_is_with_a_long_text_of_one_model(runs: dict[str, Path]) -> None:
    assert "inspecting mrt5-seed3\n" in inspect(runs["mrt5"], "--text", "abc").stderr


def test_the_strings_that_a_text_is_not_are_named_with_their_models(runs: dict[str, Path]) -> None:
    both = inspect(runs["mrt5"], runs["spans"], runs["bp"], "--text", "abc").stderr

    assert "mrt5-seed3, bp-seed3 were trained on strings that begin with '#'" in " ".join(both.split())


def test_no_letter_deleted_is_said_in_words(runs: dict[str, Path]) -> None:
    printed = inspect(runs["mrt5"], "--threshold", "-29.9999").stdout

    assert "it deletes no letters; 0.0 % of the letters not needed are deleted" in printed
