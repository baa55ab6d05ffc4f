"""The report of a plan: one Markdown file and one self-contained HTML file.

Everything is read from the files of runs, evaluations and analyses, so a report can be written at any time,
even for a half-finished plan. A file that cannot be read is listed and skipped.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mrt5cli.errors import UserError, not_written
from mrt5cli.extras import how_to_install
from mrt5cli.fingerprint import recipe_hash
from mrt5cli.metrics.results import Json
from mrt5cli.report import tables
from mrt5cli.report.analysis_tables import analysis_tables, examples_of
from mrt5cli.report.claims import judge
from mrt5cli.report.html import anchor, render
from mrt5cli.report.placement import Placed, place
from mrt5cli.report.results import Results
from mrt5cli.report.tables import MISSING, Table
from mrt5cli.report.verdicts import VERDICTS, Compared, compare, count
from mrt5cli.suite.jobs import AnalyseJob, Experiment, Job, SuitePlan
from mrt5cli.text import Tell, counted, duration, say_nothing
from mrt5cli.writing import write_text

if TYPE_CHECKING:
    from mrt5cli.report.figures.style import Drawing

NO_FIGURES = "There are no figures because matplotlib is not installed: {}, then repeat the command."
FIGURES_FOLDER = "figures"
TITLES = {"paper": "The MrT5 paper, reproduced", "miniature": "The MrT5 paper in miniature"}


def can_draw() -> bool:
    """Whether matplotlib, an optional dependency, is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def write_report(plan: SuitePlan, out: Path, tell: Tell = say_nothing) -> list[Path]:
    """Write `report.html`, `report.md` and their figures into a folder, replacing an earlier report.

    Without matplotlib the report has no figures and explains how to get them.

    Args:
        tell: called with one sentence per file that cannot be read.

    Returns:
        The paths of the two pages.

    Raises:
        UserError: the folder cannot be written to, or the disk is full.
    """
    report = _report(plan)
    for reason in report["damaged"]:
        tell(f"note: {reason}; the report leaves it out")
    drawings = {drawing.name: drawing for section in report["sections"] for drawing in section["drawings"]}
    pages = {out / f"report.{kind}": render(f"report.{kind}.j2", report) for kind in ("html", "md")}
    try:
        for name, drawing in drawings.items():
            write_text(out / FIGURES_FOLDER / f"{name}.svg", drawing.svg)
        for old in (out / FIGURES_FOLDER).glob("*.svg"):
            if old.stem not in drawings:
                old.unlink()
        for path, text in pages.items():
            write_text(path, text)
    except OSError as error:
        raise not_written(error) from error
    return list(pages)


def _report(plan: SuitePlan) -> Json:
    """Everything both templates print, by the names they use, read from a plan's files."""
    placed = place(plan.experiments)
    wanted = [experiment for experiment in plan.experiments if _is_wanted(plan, experiment)]
    sections = [_section(Results(plan, experiment), placed) for experiment in wanted]
    claims = [(section["title"], claim) for section in sections for claim in section["judged"]]
    trained = [job for job in plan.trainings if job.status != "left out"]
    totals = {verdict: sum(section["counts"][verdict] for section in sections) for verdict in VERDICTS}
    metas, damaged = _metas(plan)
    damaged += [reason for section in sections for reason in section["damaged"]]
    compares = any(totals.values()) and not plan.smoke
    contents = [(anchor(section["id"]), section["title"]) for section in sections]
    contents += [("how-verdicts-are-reached", "How verdicts are reached")] if compares else []
    return {
        "title": TITLES.get(plan.suite, f"{plan.suite}: reproduction"),
        "smoke": plan.smoke,
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "trained": counted(len(trained), "run"),
        "done": sum(job.status in ("done", "changed") for job in trained),
        "totals": totals,
        "contents": [*contents, ("how-it-was-made", "How it was made")],
        "compares": compares,
        "judged": counted(len(claims), "claim") if claims and not plan.smoke else "",
        "held": [sum(claim.holds is verdict for _, claim in claims) for verdict in (True, False, None)],
        "summary": tables.summary({section["title"]: section["counts"] for section in sections}),
        "claims": tables.claims_table(
            "experiment",
            "claim",
            ((claim, title, claim.statement) for title, claim in claims),
            smoke=plan.smoke,
        ),
        "sections": sections,
        "rules": tables.rules(),
        "facts": _facts(plan, list(metas.values())),
        "runs": _runs(plan, metas),
        "left_out": [experiment.title for experiment in plan.experiments if experiment not in wanted],
        "failures": [job for job in plan.jobs if job.status in ("failed", "blocked")],
        "damaged": list(dict.fromkeys(damaged)),
        "how_to_draw": None if can_draw() else how_to_install("plots"),
        "figures": FIGURES_FOLDER,
    }


def _is_wanted(plan: SuitePlan, experiment: Experiment) -> bool:
    """Whether the plan includes any part of an experiment, finished or not."""
    jobs: list[Job] = [*plan.runs(experiment).values()]
    jobs += [job for job in plan.jobs if isinstance(job, AnalyseJob) and job.experiment == experiment]
    return not jobs or any(job.status != "left out" for job in jobs)


def _section(results: Results, placed: Mapping[str, Sequence[Placed]]) -> Json:
    """Everything both templates print about an experiment, by the names they use."""
    experiment = results.experiment
    compared = compare(results, placed[experiment.id])
    claims = [judge(name, results.evidence) for name in experiment.claims]
    counts = count(compared)
    patterns = results.analyses.get("deletion_patterns")
    return {
        "id": experiment.id,
        "title": experiment.title,
        "about": experiment.about,
        "counts": counts,
        "verdicts": "" if results.plan.smoke else tables.listed_verdicts(counts),
        "problems": tables.problems(results),
        "damaged": results.damaged
        + [one for runs in results.runs.values() for run in runs for one in run.damaged],
        "judged": claims,
        "claims": tables.claims_table(
            "claim",
            "reason",
            ((claim, claim.statement, claim.sentence) for claim in claims),
            smoke=results.plan.smoke,
        ),
        "evidence": [tables.evidence_of(claim) for claim in claims if claim.rows],
        "runs": tables.our_runs(results),
        "comparisons": tables.comparisons(compared),
        "drawings": _drawings(results, compared),
        "analyses": [
            table for name, found in results.analyses.items() for table in analysis_tables(name, found)
        ],
        "examples": examples_of(patterns) if patterns else [],
    }


def _drawings(results: Results, compared: Sequence[Compared]) -> list[Drawing]:
    if not can_draw():
        return []
    from mrt5cli.report.figures import draw

    return [drawing for name in results.experiment.figures for drawing in draw(name, results, compared)]


# --- facts about the runs --------------------------------------------------------------------------------


def _metas(plan: SuitePlan) -> tuple[dict[str, Json], list[str]]:
    """The contents of the runs' `meta.json` by job, and the reasons why some cannot be read."""
    metas, damaged = {}, []
    for job in plan.trainings:
        try:
            metas[job.id] = job.run.meta()
        except UserError as error:
            metas[job.id] = {}
            damaged.append(error.message)
    return metas, damaged


def _facts(plan: SuitePlan, metas: Sequence[Json]) -> dict[str, str]:
    """The machines, versions and commits of the runs."""
    metas = [meta for meta in metas if meta]
    versions: dict[str, list[str]] = {}
    for name, version in (pair for meta in metas for pair in meta.get("versions", {}).items()):
        versions.setdefault(name, []).append(version)
    seconds = sum(map(_seconds, metas))
    facts = {
        "trained on": _each(map(_device, metas)),
        "versions": ", ".join(f"{name} {_each(found)}" for name, found in versions.items()),
        "commit": _each(meta.get("commit") or "not from a checkout" for meta in metas),
        "training time, all runs": duration(seconds) if seconds else "",
        "folder of the runs": plan.root.name,
    }
    return {name: text or MISSING for name, text in facts.items()}


def _device(meta: Json) -> str:
    processes, threads = meta.get("processes", 1), meta.get("threads")
    many = f"{processes} x " if processes > 1 else ""
    on_cpu = f", {counted(threads, 'thread')}" if meta.get("device") == "cpu" and threads else ""
    return f"{many}{meta.get('device_name', 'unknown')}, {meta.get('precision', 'unknown precision')}{on_cpu}"


def _each(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values))


def _runs(plan: SuitePlan, metas: Mapping[str, Json]) -> Table:
    """One row per run: seed, recipe hash, status, code, and training time."""
    headers = ("recipe", "seed", "recipe hash", "status", "code", "commit", "started", "trained for")
    lines = []
    for job in plan.trainings:
        meta = metas[job.id]
        sessions, seconds = meta.get("sessions") or [{}], _seconds(meta)
        status = job.status + (f": {job.reason}" if job.reason and job.status != "done" else "")
        started = (meta.get("started") or "")[:16].replace("T", " ")
        run = job.name, str(job.recipe.seed), recipe_hash(job.recipe), status
        made = sessions[-1].get("code"), meta.get("commit"), started, duration(seconds) if seconds else ""
        lines.append((*run, *(value or MISSING for value in made)))
    return Table(headers, lines, "All runs", folded=True, words=7)


def _seconds(meta: Json) -> float:
    """Total seconds of a run's finished sessions."""
    return sum(
        (datetime.fromisoformat(one["ended"]) - datetime.fromisoformat(one["started"])).total_seconds()
        for one in meta.get("sessions", ())
        if one.get("ended") and one.get("started")
    )
