"""Plans: which jobs a suite needs, which of them are done, and which are wanted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reproduction import FAMILY, analysed, evaluated, experiment, leave_done, measured, recipe, trained, tree

from mrt5cli.errors import RecipeError, UserError
from mrt5cli.json_files import read_object
from mrt5cli.recipe import strict_yaml
from mrt5cli.suite import planning, states
from mrt5cli.suite.graph import build_plan
from mrt5cli.suite.jobs import Evaluation, Experiment, SuitePlan
from mrt5cli.suite.planning import closure, keep_to_budget, make_plan
from mrt5cli.suite.suites import load_suite, suite_names
from mrt5cli.writing import write_json, write_text

BYT5, MRT5 = "train tiny/byt5 seed 1", "train tiny/mrt5 seed 1"
MRT5_EVALUATED = "evaluate tiny/mrt5 seed 1 vowel_removal"
ANALYSED = "analyse small:compute"
SMALL = experiment("small", "tiny/byt5", "tiny/mrt5", analyses=("compute",))


def planned(root: Path, *experiments: Experiment, known: Any = FAMILY, **options: Any) -> SuitePlan:
    return make_plan("mine", experiments or (SMALL,), root, known=known, **options)


def statuses(plan: SuitePlan) -> dict[str, str]:
    return {job.id: job.status for job in plan.jobs}


def without(plan: SuitePlan, *done: str) -> dict[str, str]:
    """The statuses of the jobs that are not done."""
    return {id_: status for id_, status in statuses(plan).items() if status != "done"}


# --- the graph ----------------------------------------------------------------------------------------------


def test_each_job_once_after_what_it_needs(tmp_path: Path) -> None:
    plan = planned(tmp_path, SMALL, experiment("again", "tiny/mrt5", "other"))
    ids = [job.id for job in plan.jobs]
    assert len(ids) == len(set(ids)) == 7
    for job in plan.jobs:
        assert all(ids.index(need.id) < ids.index(job.id) for need in job.needs)
    assert plan.job(MRT5).needs == (plan.job(BYT5),)
    assert plan.job(MRT5).experiments == ("small", "again")
    assert {need.id for need in plan.job(ANALYSED).needs} == {
        *(BYT5, MRT5, MRT5_EVALUATED, "evaluate tiny/byt5 seed 1 vowel_removal")
    }
    assert plan.job(ANALYSED).output == tmp_path / "analyses" / "small" / "compute.json"


def test_starts_move_with_the_runs(tmp_path: Path) -> None:
    job = planned(tmp_path).job(MRT5)
    assert job.recipe is not None and job.run is not None
    assert job.recipe.model.start == str(tmp_path / "byt5-seed1")
    assert job.run.path == tmp_path / "mrt5-seed1"


def test_what_is_only_started_from_comes_along_and_is_shown_nowhere(tmp_path: Path) -> None:
    plan = planned(tmp_path, experiment("late", "tiny/mrt5", evaluations=()))
    assert [(job.id, job.experiments) for job in plan.jobs] == [(BYT5, ()), (MRT5, ("late",))]


def test_seeds_repeat_recipes_and_not_what_they_start_from(tmp_path: Path) -> None:
    repeated = experiment("repeated", "tiny/mrt5", seeds=(5, 6), evaluations=())
    single = experiment("single", "tiny/mrt5", evaluations=())
    plan = planned(tmp_path, repeated, single)
    assert [job.id for job in plan.jobs] == [BYT5, *(f"train tiny/mrt5 seed {seed}" for seed in (5, 6, 1))]
    assert all(job.needs == (plan.job(BYT5),) for job in plan.jobs[1:])
    assert [seed for _, seed in plan.runs(repeated)] == [5, 6]
    assert [seed for _, seed in plan.runs(single)] == [1]


def test_a_start_that_follows_the_seed_is_trained_with_each(tmp_path: Path) -> None:
    known: dict[str, Any] = dict(FAMILY)
    for name, start in (("mid", "byt5"), ("top", "mid")):
        known[name] = tmp_path / f"{name}.yaml"
        write_text(known[name], strict_yaml.dump(tree(name, f"runs/{start}-seed{{seed}}")))
    repeated = experiment("repeated", "top", "tiny/mrt5", seeds=(1, 6), evaluations=())
    plan = planned(tmp_path, repeated, known=known)
    for seed in (1, 6):
        base, mid, top = (plan.job(f"train {name} seed {seed}") for name in ("tiny/byt5", "mid", "top"))
        assert (top.needs, mid.needs, base.needs) == ((mid,), (base,), ())
        assert [job.recipe.seed for job in (base, mid, top)] == [seed] * 3
        assert [job.recipe.model.start for job in (mid, top)] == [str(job.run.path) for job in (base, mid)]
        # Spelt out, it is what it says.
        assert plan.job(f"train tiny/mrt5 seed {seed}").needs == (plan.job(BYT5),)
    assert len(plan.jobs) == 8


def test_a_folder_of_runs_that_no_start_can_name_is_refused_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    with pytest.raises(RecipeError, match=r"the only braces allowed are \{seed\}"):
        planned(tmp_path / "a{b}")


def test_evaluations_of_a_run_never_share_a_file(tmp_path: Path) -> None:
    asked = (
        *(Evaluation(), Evaluation(runtime=True), Evaluation(limit=3), Evaluation(constrained=True)),
        *(Evaluation(task="other"), Evaluation(task="other", runtime=True, limit=3)),
    )
    plan = planned(tmp_path, experiment("a", "tiny/byt5", evaluations=asked))
    outputs = [job.output for job in plan.jobs if job.kind == "evaluate"]
    assert len(set(outputs)) == len(asked)
    assert outputs[0] == tmp_path / "byt5-seed1" / "eval" / "vowel_removal.json"  # as `mrt5 evaluate RUN`


def test_smoke_runs_start_from_nothing_and_are_called_so(tmp_path: Path) -> None:
    plan = planned(tmp_path, smoke=True)
    job = plan.job(MRT5)
    assert job.needs == () and job.recipe is not None and job.run is not None
    assert job.recipe.model.start == "scratch"
    assert job.run.path.name == "mrt5-smoke-seed1"


def test_text_that_is_not_there_stands_in_for_smoke(tmp_path: Path) -> None:
    source = {"kind": "files", "path": str(tmp_path / "corpus")}
    task = {"kind": "span_corruption", "source": source, "languages": ["fr", "de"], "input_length": 32}
    known = {"text": recipe("text", task=task)}

    def read() -> Any:
        [job, evaluation] = planned(tmp_path, experiment("a", "text"), known=known, smoke=True).jobs
        assert job.recipe is not None and evaluation.task == job.recipe.task
        return job.recipe.task

    assert (read().source.kind, read().languages) == ("embedded", ["en"])
    (tmp_path / "corpus").mkdir()
    assert (read().source.kind, read().languages) == ("files", ["fr", "de"])


@pytest.mark.parametrize(("baseline", "found"), [(None, "not set"), ("other", "other")])
@pytest.mark.parametrize("analysis", ["per_sample", "runtime"])
def test_an_analysis_without_its_baseline_is_refused(
    tmp_path: Path, analysis: str, baseline: str | None, found: str
) -> None:
    wanted = Experiment("e", "E", recipes=("tiny/byt5",), baseline=baseline, analyses=(analysis,))
    with pytest.raises(UserError, match=f"e: the analysis {analysis} compares with .*, which is {found};"):
        planned(tmp_path, wanted)


def test_a_start_that_nobody_makes_is_refused(tmp_path: Path) -> None:
    known = {"lost": recipe("lost", "runs/byt6-seed1"), "byt5": recipe("byt5")}
    with pytest.raises(UserError, match="recipe lost starts from runs/byt6-seed1, which no shipped recipe"):
        build_plan("mine", [experiment("a", *known)], known, tmp_path)


def test_other_starts_need_nothing(tmp_path: Path) -> None:
    known = {"hub": recipe("hub", "google/byt5-small"), "path": recipe("path", "elsewhere/runs/x-seed1")}
    plan = planned(tmp_path, experiment("a", *known), known=known)
    assert all(not job.needs for job in plan.jobs if job.kind == "train")


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_any_family_is_ordered(starts: list[int]) -> None:
    """Recipe i starts from an earlier recipe, or from nothing."""
    known = {
        f"r{place}": recipe(f"r{place}", f"runs/r{start}-seed1" if start < place else "scratch")
        for place, start in enumerate(starts)
    }
    backwards = experiment("a", *reversed(known), evaluations=())
    jobs = build_plan("mine", [backwards], known, Path("runs")).jobs
    assert len(jobs) == len(starts)
    for place, job in enumerate(jobs):
        assert all(need in jobs[:place] for need in job.needs)


@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize("name", suite_names())
def test_the_suites_that_come_along_make_plans(tmp_path: Path, name: str, smoke: bool) -> None:
    experiments = load_suite(name)
    plan = make_plan(name, experiments, tmp_path, smoke=smoke)
    assert {job.status for job in plan.jobs} == {"missing"}
    assert len({job.run.path for job in plan.trainings}) == len(plan.trainings)
    for one in experiments:
        shown = {job.name for job in plan.jobs if job.kind == "train" and one.id in job.experiments}
        assert shown == set(one.recipes)
        assert len(plan.runs(one)) == len(one.recipes) * max(1, len(one.seeds))
    if smoke:
        assert all(not job.needs for job in plan.jobs if job.kind == "train")


# --- what is done -------------------------------------------------------------------------------------------


def test_nothing_there_is_missing_and_all_there_is_done(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert set(statuses(plan).values()) == {"missing"}
    leave_done(plan)
    assert without(planned(tmp_path)) == {}


def test_a_stopped_training_is_half_done(tmp_path: Path) -> None:
    run = trained(planned(tmp_path).job(BYT5), status="interrupted")
    write_text(run.checkpoint(2) / "config.json", "{}")
    job = planned(tmp_path).job(BYT5)
    assert (job.status, job.reason) == ("half done", "saved at step 2 of 4")


def test_a_training_that_was_killed_is_half_done(tmp_path: Path) -> None:
    trained(planned(tmp_path).job(BYT5), status="running")
    job = planned(tmp_path).job(BYT5)
    assert (job.status, job.reason) == ("half done", "nothing saved")


def test_a_failed_training_says_why(tmp_path: Path) -> None:
    trained(planned(tmp_path).job(BYT5), status="failed", error="RunFailed: loss is nan")
    job = planned(tmp_path).job(BYT5)
    assert job.status == "failed" and "loss is nan" in str(job.reason)


def test_a_finished_run_without_its_model_is_not_done(tmp_path: Path) -> None:
    (trained(planned(tmp_path).job(BYT5)).model / "config.json").unlink()
    assert planned(tmp_path).job(BYT5).status == "half done"


@pytest.mark.parametrize("status", ["finished", "interrupted"])
def test_another_recipe_is_changed_and_says_how(tmp_path: Path, status: str) -> None:
    leave_done(planned(tmp_path))
    trained(planned(tmp_path).job(BYT5), status=status)
    known = FAMILY | {"tiny/byt5": recipe("byt5", training={"learning_rate": 0.5, "max_steps": 9})}
    for keep in (False, True):
        job = planned(tmp_path, known=known, keep_changed=keep).job(BYT5)
        assert job.status == "changed"
        changed = "training.max_steps: 4 in the run, 9 now, and 1 more"
        assert job.reason == f"trained with another recipe: {changed}"


def test_words_and_habits_make_no_other_recipe(tmp_path: Path) -> None:
    leave_done(planned(tmp_path))
    other = recipe("byt5", description="better words", training={"save_steps": 3, "keep_checkpoints": 1})
    assert without(planned(tmp_path, known=FAMILY | {"tiny/byt5": other})) == {}


def test_another_evaluation_section_is_evaluated_again_and_not_trained(tmp_path: Path) -> None:
    leave_done(planned(tmp_path))
    other = recipe("mrt5", "runs/byt5-seed1", evaluation={"examples": 5})
    plan = planned(tmp_path, known=FAMILY | {"tiny/mrt5": other})
    assert without(plan) == {MRT5_EVALUATED: "changed", ANALYSED: "changed"}
    assert plan.job(MRT5_EVALUATED).reason == "examples changed: 8 before, 5 now"


def test_other_code_is_changed_unless_it_is_to_stand(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    leave_done(plan)
    trained(plan.job(BYT5), code="0.0.1+old")
    assert planned(tmp_path).job(BYT5).status == "changed"
    assert "0.0.1+old" in str(planned(tmp_path).job(BYT5).reason)
    assert set(without(planned(tmp_path))) == {job.id for job in plan.jobs}
    assert without(planned(tmp_path, keep_changed=True)) == {}


@pytest.mark.parametrize("keep", [False, True])
def test_an_analysis_of_other_code_never_stands(tmp_path: Path, keep: bool) -> None:
    """Claims, tables and figures read its fields by name, and it may be older than one of them."""
    plan = planned(tmp_path)
    leave_done(plan)
    [output] = [job.output for job in plan.jobs if job.id == ANALYSED]
    found = read_object(output)
    write_json(output, found | {"made": found["made"] | {"code": "0.0.1+old"}})
    assert without(planned(tmp_path, keep_changed=keep)) == {ANALYSED: "changed"}


def test_a_half_done_run_of_other_code_is_never_gone_on_with(tmp_path: Path) -> None:
    trained(planned(tmp_path).job(BYT5), code="0.0.1+old", status="interrupted")
    for keep in (False, True):
        assert planned(tmp_path, keep_changed=keep).job(BYT5).status == "changed"


def test_one_session_of_other_code_is_enough(tmp_path: Path) -> None:
    job = planned(tmp_path).job(BYT5)
    run = trained(job)
    sessions = [{"code": "0.0.1+old"}, *run.meta()["sessions"]]
    trained(job, sessions=sessions)
    assert planned(tmp_path).job(BYT5).status == "changed"


@pytest.mark.parametrize("work, changed", [("train", 5), ("evaluate", 3), ("analyse", 1)])
def test_a_change_of_code_reaches_as_far_as_it_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str, changed: int
) -> None:
    leave_done(planned(tmp_path))
    real = states.code_version
    monkeypatch.setattr(states, "code_version", lambda of: "new" if of == work else real(of))
    plan = planned(tmp_path)
    assert len(without(plan)) == changed and set(without(plan).values()) == {"changed"}


def test_a_start_that_was_trained_anew_is_started_from_anew(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    leave_done(plan)
    trained(plan.job(BYT5), ended="2026-03-01")
    plan = planned(tmp_path)
    assert plan.job(BYT5).status == "done"
    assert plan.job(MRT5).reason == "its start was trained again: tiny/byt5"
    assert plan.job(MRT5_EVALUATED).reason == "its run is changed"


def test_an_evaluation_is_of_one_training(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    leave_done(plan)
    trained(plan.job(MRT5), ended="2026-03-01")
    plan = planned(tmp_path)
    assert plan.job(MRT5_EVALUATED).reason == "its run was trained again after the evaluation"


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"limit": 3}, "examples changed: 3 before, 8 now"),
        ({"batch_size": 2}, "batch size changed: 2 before, 4 now"),
        ({"split": "validation"}, "split changed: validation before, test now"),
        ({"constrained": True}, "constrained changed: True before, False now"),
        ({"task": {"kind": "copy", "settings": {"kind": "copy"}}}, "task changed"),
        ({"code": "old"}, "evaluated with other code (old; now"),
        ({"models": []}, "another version of the toolkit wrote the results"),
    ],
)
def test_results_of_other_settings_are_changed(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    plan = planned(tmp_path)
    leave_done(plan)
    evaluated(plan.job(MRT5_EVALUATED), **changes)
    job = planned(tmp_path).job(MRT5_EVALUATED)
    assert job.status == "changed" and str(job.reason).startswith(reason)


def test_a_runtime_that_was_not_timed_is_not_done(tmp_path: Path) -> None:
    asked = experiment("a", "other", evaluations=(Evaluation(runtime=True),))
    plan = planned(tmp_path, asked)
    leave_done(plan)
    assert without(planned(tmp_path, asked)) == {}
    [_, job] = plan.jobs
    evaluated(job, models=[measured("2026-01-01", None)])
    assert planned(tmp_path, asked).job(job.id).reason == "not timed"


def test_an_analysis_is_of_the_results_it_was_made_from(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    leave_done(plan)
    evaluated(plan.job(MRT5_EVALUATED), note="another number")
    plan = planned(tmp_path)
    assert without(plan) == {ANALYSED: "changed"}
    analysed(plan, plan.job(ANALYSED))
    assert without(planned(tmp_path)) == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"models": 3}'])
def test_spoilt_files_are_made_again(tmp_path: Path, text: str) -> None:
    plan = planned(tmp_path)
    leave_done(plan)
    for id_ in (MRT5_EVALUATED, ANALYSED):
        plan.job(id_).output.write_text(text)
    assert without(planned(tmp_path)) == {MRT5_EVALUATED: "changed", ANALYSED: "changed"}


def test_a_run_that_cannot_be_read_is_changed(tmp_path: Path) -> None:
    trained(planned(tmp_path).job(BYT5)).recipe_path.write_text("name: 3\n")
    job = planned(tmp_path).job(BYT5)
    assert job.status == "changed" and "cannot be read" in str(job.reason)


# --- what is wanted -----------------------------------------------------------------------------------------


def test_only_takes_experiments_and_recipes_and_what_they_need(tmp_path: Path) -> None:
    suite = (SMALL, experiment("rest", "tiny/random", "other"))
    plan = planned(tmp_path, *suite, only=["tiny/r*"])
    assert {id_ for id_, status in statuses(plan).items() if status != "left out"} == {
        *(BYT5, "train tiny/random seed 1", "evaluate tiny/random seed 1 vowel_removal")
    }
    plan = planned(tmp_path, *suite, only=["small"])
    assert {job.id for job in plan.jobs if job.status == "missing"} == {
        job.id for job in plan.jobs if "small" in job.experiments
    }


def test_only_of_what_is_done_leaves_nothing_to_do(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    leave_done(plan, MRT5, MRT5_EVALUATED, BYT5)
    assert set(statuses(planned(tmp_path, only=["tiny/mrt5"])).values()) == {"done", "left out"}


def test_only_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        planned(tmp_path, only=["small", "tiny/mrt6"])
    assert "--only tiny/mrt6" in caught.value.message
    assert caught.value.hint == "did you mean tiny/mrt5?"


def test_a_start_is_not_trained_for_nobody(tmp_path: Path) -> None:
    late = experiment("late", "tiny/mrt5")
    plan = planned(tmp_path, late)
    leave_done(plan)
    trained(plan.job(BYT5), status="interrupted")
    plan = planned(tmp_path, late, keep_changed=True)
    assert statuses(plan)[BYT5] == "left out"
    assert plan.job(BYT5).reason == planning.NOT_NEEDED


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 5.0]), min_size=8, max_size=8), st.floats(0, 20))
def test_a_budget_is_kept_and_nothing_is_torn_from_what_it_needs(hours: list[float], budget: float) -> None:
    suite = (experiment("late", "tiny/mrt5", "tiny/random"), experiment("rest", "other"))
    plan = build_plan("mine", suite, FAMILY, Path("nowhere"))
    for job, cost in zip(plan.jobs, hours, strict=False):
        job.hours = cost
    first = next(job for job in plan.jobs if job.experiments)
    cost_of_first = sum(job.hours for job in closure(first))
    out = keep_to_budget(plan, budget)
    left = [job for job in plan.jobs if job.to_do]
    assert sum(job.hours for job in left) <= budget
    assert {job.id for job in out} | {job.id for job in left} == {job.id for job in plan.jobs}
    assert all(need in left for job in left for need in job.needs)
    # A job that no experiment shows exists for one that needs it.
    assert all(any(job in other.needs for other in left) for job in left if not job.experiments)
    assert first.to_do or cost_of_first > budget


def test_planning_loads_nothing_heavy(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys\n"
        "from mrt5cli.cli import main\n"
        f"sys.argv = ['mrt5', 'reproduce', '--dry-run', '--json', '--runs', {str(tmp_path)!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers'} & sys.modules.keys()), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[]"
    assert json.loads(done.stdout)["suite"] == "paper"
    assert list(tmp_path.iterdir()) == []


def test_an_analysis_without_provenance_is_changed(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    leave_done(plan)
    write_json(plan.job(ANALYSED).output, {"rows": []})
    assert without(planned(tmp_path)) == {ANALYSED: "changed"}
