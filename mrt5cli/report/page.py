"""The report of a plan: one Markdown file and one HTML file that needs nothing else.

Everything is read from what runs, evaluations and analyses have left on disk, so a report can be written at
any time, of a plan that is half done, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrt5cli.errors import UserError
from mrt5cli.fingerprint import recipe_hash
from mrt5cli.report import tables
from mrt5cli.report.analysis_tables import Example, analysis_tables, examples_of
from mrt5cli.report.claims import Claim, check_claim
from mrt5cli.report.figures import HOW_TO_DRAW, can_draw
from mrt5cli.report.placement import place
from mrt5cli.report.results import Results
from mrt5cli.report.tables import MISSING, Table, tabulated
from mrt5cli.report.verdicts import VERDICTS, Compared, Verdict, compare, count
from mrt5cli.rundir import write_text
from mrt5cli.suite.jobs import AnalyseJob, Experiment, Job, SuitePlan, TrainJob
from mrt5cli.text import counted, duration

if TYPE_CHECKING:
    from mrt5cli.report.figures.style import Drawing

FIGURES_FOLDER = "figures"
TITLES = {"paper": "The MrT5 paper, reproduced", "miniature": "The MrT5 paper in miniature"}


@dataclass(frozen=True)
class Section:
    """One experiment.

    Attributes:
        counts: of verdicts on its published numbers.
        problems: what is missing, a sentence each.
        runs: our numbers alone, or None without any.
        comparisons: with the published ones.
        drawings, claims, analyses, examples: what it has of each; evidence: the claims' numbers.
    """

    experiment: Experiment
    counts: Mapping[Verdict, int]
    problems: Sequence[str]
    runs: Table | None
    comparisons: Sequence[Table]
    drawings: Sequence[Drawing] = ()
    claims: Table | None = None
    evidence: Sequence[Table] = ()
    analyses: Sequence[Table] = ()
    examples: Sequence[Example] = ()

    @property
    def verdicts(self) -> str:
        """The counts in words."""
        return tables.in_words(self.counts)


@dataclass(frozen=True)
class Report:
    """All that both pages print."""

    title: str
    smoke: bool
    written: str
    headline: str
    summary: Table
    claims: Table | None
    sections: Sequence[Section]
    rules: Table
    facts: Sequence[tuple[str, str]]
    runs: Table
    failures: Sequence[str]
    left_out: Sequence[str] = ()
    how_to_draw: str | None = None

    @property
    def compares(self) -> bool:
        """Whether anything was published of what is here."""
        return any(sum(section.counts.values()) for section in self.sections)


def write_report(plan: SuitePlan, out: Path) -> list[Path]:
    """Write `report.html`, `report.md` and its figures into a folder; what was there of them is replaced.

    Without matplotlib the report has no figures, and says how to get them.

    Returns:
        The two pages.

    Raises:
        UserError: the folder cannot be written to.
    """
    report = make_report(plan)
    drawings = {drawing.name: drawing for section in report.sections for drawing in section.drawings}
    pages = {out / "report.html": render(report, "html"), out / "report.md": render(report, "md")}
    try:
        for name, drawing in drawings.items():
            write_text(out / FIGURES_FOLDER / f"{name}.svg", drawing.file)
        for old in (out / FIGURES_FOLDER).glob("*.svg"):
            if old.stem not in drawings:
                old.unlink()
        for path, text in pages.items():
            write_text(path, text)
    except OSError as error:
        raise UserError(
            f"the report cannot be written to {out}: {error.strerror or error}",
            "choose another folder with --out",
        ) from error
    return list(pages)


def make_report(plan: SuitePlan) -> Report:
    """Read everything that a plan has left on disk."""
    placed = place(plan.experiments)
    sections: list[Section] = []
    claims: list[tuple[str, Claim]] = []
    wanted = [experiment for experiment in plan.experiments if _is_wanted(plan, experiment)]
    for experiment in wanted:
        results = Results(plan, experiment)
        compared = compare(results, placed[experiment.id])
        found = [check_claim(name, results) for name in experiment.claims]
        sections.append(_section(results, compared, found))
        claims += [(experiment.title, claim) for claim in found]
    counts = {section.experiment.id: section.counts for section in sections}
    titles = {experiment.id: experiment.title for experiment in plan.experiments}
    return Report(
        title=TITLES.get(plan.suite, f"{plan.suite}: reproduction"),
        smoke=plan.smoke,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        headline=_headline(plan, counts, [claim for _, claim in claims]),
        summary=tables.summary(counts, titles),
        claims=tables.claims_overview(claims) if claims else None,
        sections=sections,
        rules=tables.rules(),
        facts=_facts(plan),
        runs=_runs(plan),
        left_out=[experiment.title for experiment in plan.experiments if experiment not in wanted],
        failures=[_failure(job) for job in plan.jobs if job.status in ("failed", "blocked")],
        how_to_draw=None if can_draw() else HOW_TO_DRAW,
    )


def _is_wanted(plan: SuitePlan, experiment: Experiment) -> bool:
    """Whether any part of an experiment is in the plan to be done, or was done."""
    jobs: list[Job] = [*plan.runs(experiment).values()]
    jobs += [job for job in plan.jobs if isinstance(job, AnalyseJob) and job.experiment == experiment]
    return not jobs or any(job.status != "left out" for job in jobs)


def _section(results: Results, compared: Sequence[Compared], claims: Sequence[Claim]) -> Section:
    experiment = results.experiment
    documents = {name: results.analysis(name) for name in experiment.analyses}
    found = {name: document for name, document in documents.items() if document is not None}
    patterns = found.get("deletion_patterns")
    return Section(
        experiment,
        counts=count(compared),
        problems=[
            *tables.problems(results),
            *(f"analysis {name}: not done" for name, document in documents.items() if document is None),
            *(f"analysis {name}: without {run}" for name in found for run in found[name].get("missing", ())),
        ],
        runs=tables.our_runs(results),
        comparisons=tables.comparisons(compared),
        drawings=_drawings(results, compared),
        claims=tables.claims_table(claims) if claims else None,
        evidence=[table for claim in claims if (table := tables.evidence_of(claim)) is not None],
        analyses=[table for name in found for table in analysis_tables(name, found[name])],
        examples=examples_of(patterns) if patterns is not None else [],
    )


def _drawings(results: Results, compared: Sequence[Compared]) -> list[Drawing]:
    if not can_draw():
        return []
    from mrt5cli.report.figure_data import draw

    return [drawing for name in results.experiment.figures for drawing in draw(name, results, compared)]


# --- words -----------------------------------------------------------------------------------------------


def _headline(plan: SuitePlan, counts: Mapping[str, Mapping[Verdict, int]], claims: Sequence[Claim]) -> str:
    trained = [job for job in plan.trainings if job.status != "left out"]
    done = sum(job.status in ("done", "changed") for job in trained)
    words = [f"{done:,} of {counted(len(trained), 'run')} are done."]
    totals = {verdict: sum(count[verdict] for count in counts.values()) for verdict in VERDICTS}
    published = sum(totals.values())
    if published:
        judged = totals["within"] + totals["outside"] + totals["better"]
        words.append(
            f"Of {published:,} published numbers {judged:,} are compared: {totals['within']:,} are within "
            f"tolerance, {totals['better']:,} better, {totals['outside']:,} outside; {totals['not run']:,} "
            f"have not been run, and {totals['not compared']:,} cannot be compared, such as times of "
            "another machine."
        )
    if claims:
        held = [sum(claim.holds is verdict for claim in claims) for verdict in (True, False, None)]
        words.append(
            f"Of {counted(len(claims), 'claim')} {held[0]} held here, {held[1]} did not, "
            f"{held[2]} stayed open."
        )
    return " ".join(words)


def _failure(job: Job) -> str:
    return f"{job.id}: {job.status}{f', {job.reason}' if job.reason else ''}"


def _facts(plan: SuitePlan) -> list[tuple[str, str]]:
    """The machines, versions and commits that the runs were made with."""
    metas = [job.run.meta() for job in plan.trainings]
    metas = [meta for meta in metas if meta]
    devices = _each(_device(meta) for meta in metas)
    versions: dict[str, list[str]] = {}
    for meta in metas:
        for name, version in meta.get("versions", {}).items():
            versions.setdefault(name, []).append(version)
    seconds = sum(_seconds(meta) for meta in metas)
    facts = [
        ("trained on", devices),
        ("versions", ", ".join(f"{name} {_each(found)}" for name, found in versions.items())),
        ("commit", _each(meta.get("commit") or "not from a checkout" for meta in metas)),
        ("training time, all runs", duration(seconds) if seconds else ""),
        ("folder of the runs", plan.root.name),
    ]
    return [(name, text or MISSING) for name, text in facts]


def _device(meta: Mapping[str, Any]) -> str:
    processes, threads = meta.get("processes", 1), meta.get("threads")
    many = f"{processes} x " if processes > 1 else ""
    on_cpu = f", {counted(threads, 'thread')}" if meta.get("device") == "cpu" and threads else ""
    return f"{many}{meta.get('device_name', 'unknown')}, {meta.get('precision', 'unknown precision')}{on_cpu}"


def _each(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values))


def _runs(plan: SuitePlan) -> Table:
    """Every run: its seed, the content of its recipe, and when it was trained."""
    metas = {job.id: job.run.meta() for job in plan.trainings}

    def trained_for(job: TrainJob) -> str:
        seconds = _seconds(metas[job.id])
        return duration(seconds) if seconds else MISSING

    columns: dict[str, Callable[[TrainJob], str]] = {
        "recipe": lambda job: job.name,
        "seed": lambda job: str(job.recipe.seed),
        "recipe hash": lambda job: recipe_hash(job.recipe),
        "status": lambda job: job.status + (f": {job.reason}" if job.reason and job.status != "done" else ""),
        "code": lambda job: str((metas[job.id].get("sessions") or [{}])[-1].get("code") or MISSING),
        "commit": lambda job: str(metas[job.id].get("commit") or MISSING),
        "started": lambda job: str(metas[job.id].get("started") or MISSING)[:16].replace("T", " "),
        "trained for": trained_for,
    }
    return tabulated(plan.trainings, columns, "All runs", folded=True, words=7)


def _seconds(meta: Mapping[str, Any]) -> float:
    """Time between start and end of a run's sessions; 0 where none has ended."""
    return sum(
        (datetime.fromisoformat(one["ended"]) - datetime.fromisoformat(one["started"])).total_seconds()
        for one in meta.get("sessions", ())
        if one.get("ended") and one.get("started")
    )


# --- pages -----------------------------------------------------------------------------------------------


def render(report: Report, kind: str) -> str:
    """The report as "html" or "md"."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mrt5cli.report"),
        autoescape=kind == "html",
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = markdown_cell
    environment.filters["anchor"] = anchor
    environment.filters["verdict"] = verdict_of
    return environment.get_template(f"report.{kind}.j2").render(report=report, figures=FIGURES_FOLDER)


def markdown_cell(text: str) -> str:
    """Text that a Markdown table or paragraph shows as it is."""
    escaped = re.sub(r"([\\`*_\[\]<>|~#])", r"\\\1", text)
    return escaped.replace("\n", " ")


def anchor(text: str) -> str:
    """An id for a heading."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def verdict_of(cell: str) -> str:
    """The class of a cell that holds a verdict, or nothing."""
    found = next(
        (verdict for verdict in (*VERDICTS, "holds", "does not hold", "open") if cell == verdict), ""
    )
    if not found:
        found = next((verdict for verdict in VERDICTS if cell.startswith(f"{verdict}: ")), "")
    return anchor(found)
