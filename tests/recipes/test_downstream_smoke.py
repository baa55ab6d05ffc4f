"""Every recipe of a downstream task goes through `mrt5 finetune --smoke`: no network, no start, no data.

But text2text, whose columns are its own, reads its real rows.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mrt5cli.cli import app
from mrt5cli.data.builders import dates
from mrt5cli.recipe import load
from mrt5cli.recipe.loading import shipped
from mrt5cli.rundir import RunDir

NAMES = [name for name, path in shipped().items() if load(path).is_finetuning]


def test_none_is_overlooked() -> None:
    assert len(NAMES) == 30


@pytest.mark.parametrize(
    "name",
    # The first version's recipes differ from the third's in settings only, and run on request.
    [pytest.param(name, marks=pytest.mark.slow) if "_v1/" in name else name for name in NAMES],
)
def test_is_trained_measured_and_chosen(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    kind = "files" if name.startswith("dates/") else "generated"
    if kind == "files":
        dates.build(Path("data/dates"), dates.Options(train=40, validation=20, test=20))
    result = CliRunner().invoke(app, ["finetune", name, "--smoke", "--device", "cpu"])
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    [path] = Path("runs/smoke").iterdir()
    run, recipe = RunDir(path), load(shipped()[name])
    assert run.recipe().task.source.kind == kind
    assert run.meta()["step"] == 6
    assert (run.model / "config.json").is_file()
    if recipe.training.best_metric is None:
        assert name.startswith(("spelling_small", "dates/"))
        return
    assert run.meta()["best"]["step"] in (3, 6)
    measured = [row for row in run.metrics() if "validation" in row]
    assert [row["step"] for row in measured] == [3, 6]
    parts = {"xnli": {"en"}, "xquad": {"en"}, "tydiqa": {"ru", "ar", "total"}}.get(recipe.task.kind, {"all"})
    assert set(measured[0]["validation"]) == parts
    rate = measured[0]["validation"][max(parts)]["deletion_rate"]
    if recipe.model.shortener.kind != "delete_gate":  # which, untrained, may delete or not
        assert (rate == 0.0) == (recipe.model.shortener.kind == "none")
    assert re.search(r"\d+ training and \d+ validation rows", result.stderr)
