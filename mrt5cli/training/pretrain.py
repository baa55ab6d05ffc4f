"""From a recipe's name to a finished run: `from mrt5cli import pretrain`, and the work of `mrt5 pretrain` and
`mrt5 finetune`. Imports nothing heavy before the recipe is found to be right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from mrt5cli import own_code, runtime
from mrt5cli import recipe as recipes
from mrt5cli.errors import RecipeError, UserError
from mrt5cli.recipe import Recipe
from mrt5cli.recipe.strict_yaml import YamlProblem, inline
from mrt5cli.rundir import DEFAULT_FOLDER, RunDir, default_directory
from mrt5cli.text import quiet

if TYPE_CHECKING:
    from mrt5cli.training.plan import TrainingPlan


def pretrain(
    recipe: str | Path | Recipe | RunDir,
    settings: Mapping[str, object] | None = None,
    *,
    start: str | Path | None = None,
    revision: str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    continue_for: int | None = None,
    smoke: bool = False,
    device: str = "auto",
    allow_pickle: bool = True,
    code: Sequence[str | Path] = (),
    progress: bool = True,
) -> RunDir:
    """Train a model as a recipe says, one that fine-tunes too, and return its run directory.

    `load` and `evaluate` take that directory's `path`; the model in Hugging Face layout is its `model`. Seeds
    the generators of Python, numpy and torch with the recipe's seed. In processes that torchrun or accelerate
    launch has started, all of them call this.

    Args:
        recipe: a recipe file, the name of a shipped recipe, or a recipe that a run directory's `recipe()`
            gave. With `continue_for`, a run or its directory.
        settings: keys of the recipe and their values, as `--set` takes them:
            `{"training.max_steps": 100, "task.languages": ["en", "sw"]}`. A mapping as a value takes the
            place of all that stood there.
        start: the model to start from, in place of the recipe's: a run, a checkpoint directory or a Hub id.
        revision: of a Hub model to start from: branch, tag or commit.
        out: the run directory; by default runs/NAME-seedSEED.
        resume: continue from the latest checkpoint; without any, begin; a finished run is left as it is.
        continue_for: train a finished run so many steps more, by its own recipe but for the settings:
            weights, optimizer, controller, random numbers and data go on, warmup and schedule of the learning
            rate begin anew, without a warmup unless one is set. It stays one run, in its directory.
        smoke: shrink the recipe to seconds on a CPU, to see that it runs; by default in runs/smoke/.
        device: "cpu", "cuda", "cuda:1" (a GPU's number) or "auto", a GPU if there is one.
        allow_pickle: start from weights in pickles too, see `load`.
        code: Python files of your own to import first, which may register tasks, shorteners and metrics. The
            run remembers them, and whatever opens it imports them again.
        progress: say on stderr what is trained and how far it is.

    Raises:
        RecipeError: the recipe or a setting is wrong; all problems at once.
        UserError: the run cannot start: no such recipe, model, data or device; the directory holds another
            run; there is no room for it.
        RunFailed: it started, and could not go on. Its checkpoints are whole.
        KeyboardInterrupt: Ctrl-C or a termination signal; a checkpoint has been saved.
    """
    from mrt5cli.training.run import execute

    for file in code:
        own_code.import_file(Path(file))
    given = assignments(_as_typed(settings or {}), revision, None if start is None else str(start))
    out = None if out is None else Path(out)
    with quiet(not progress):
        training = training_of(
            recipe.path if isinstance(recipe, RunDir) else recipe,
            given,
            continue_for=continue_for,
            out=out,
            resume=resume,
            smoke=smoke,
            device=device,
            allow_pickle=allow_pickle,
        )
        return execute(training.plan())


def _as_typed(settings: Mapping[str, object]) -> list[str]:
    """Settings as --set takes them."""
    problems, typed = [], []
    for key, value in settings.items():
        try:
            typed.append(f"{key}={inline(str(value) if isinstance(value, Path) else value)}")
        except YamlProblem as problem:
            problems.append((key, f"{problem}; use numbers, text, booleans, None, lists and dicts"))
    if problems:
        raise RecipeError("settings", problems)
    return typed


def assignments(
    overrides: Sequence[str] | None, revision: str | None = None, start: str | None = None
) -> list[str]:
    """What --set sets, and behind it what --revision and --from set."""
    keys: dict[str, str | None] = {}
    if start is not None:
        # Not what describes a model that is built from nothing, nor a revision of another one.
        keys = {"start": start, "revision": None, "shape": None, "initialization": "t5"}
    if revision is not None:
        keys["revision"] = revision
    return [*(overrides or ()), *(f"model.{key}={inline(value)}" for key, value in keys.items())]


@dataclass(frozen=True)
class Training:
    """A recipe, and how it is to be trained: the arguments of `planned`."""

    recipe: Recipe
    given: Sequence[str]
    out: Path | None
    resume: bool
    smoke: bool
    device: str
    allow_pickle: bool

    def plan(self) -> TrainingPlan:
        """As `planned`."""
        return planned(**{field.name: getattr(self, field.name) for field in fields(self)})


def training_of(
    recipe: str | Path | Recipe,
    given: Sequence[str],
    *,
    continue_for: int | None,
    out: Path | None,
    resume: bool,
    smoke: bool,
    device: str,
    allow_pickle: bool,
) -> Training:
    """The recipe to train, and how, as `pretrain` is asked to.

    Args:
        given: as `assignments` makes them.

    Raises:
        RecipeError, UserError: as `recipe.load`; there is no run to continue.
    """
    if continue_for is not None:
        others = {"--out": out is not None, "--resume": resume, "--smoke": smoke}
        if other := next((name for name, is_given in others.items() if is_given), None):
            hint = "to finish what was interrupted: --resume alone" if resume else f"leave out {other}"
            raise UserError(f"{other} does not go with --continue-for, which trains a run where it is", hint)
        chosen, out, resume = _continued(recipe, given, continue_for), Path(str(recipe)), True
    else:
        if resume and out is not None:
            own_code.import_again(out)  # the recipe's kinds may be of the code that the run was made with
        chosen = recipes.load(recipe, given, smoke=smoke)
    return Training(chosen, given, out, resume, smoke, device, allow_pickle)


def _continued(name: str | Path | Recipe, given: Sequence[str], steps: int) -> Recipe:
    """The recipe by which a finished run goes on for so many steps. It alone says so; therefore what begins
    is the same whether it is begun, resumed or queued as a job.

    Args:
        name: the run's directory.
        given: what else its recipe is changed by.
    """
    option = f"--continue-for {steps}"
    if steps < 1:
        raise UserError(f"{option}: expected a number of steps, 1 or more")
    run = RunDir(Path(str(name)))
    if isinstance(name, Recipe) or not run.is_run:
        raise _no_run(name, option)
    if runtime.leads():
        run.check_free()
    state = run.state()
    step = state.last_step or run.recipe().training.max_steps
    if not state.finished and not runtime.leads():
        step = state.meta["sessions"][-1]["segment"]["from_step"]  # the leading process has begun it
    elif not state.finished:
        status = str(state.meta.get("status")).replace("running", "interrupted")  # nobody trains it
        raise UserError(
            f"{option} goes on with a finished run, and {name} is {status}", f"first: {run.resume_command}"
        )
    keys = [text.partition("=")[0].strip() for text in given]
    for key in ("training", "training.max_steps", "training.continues_from"):
        if key in keys:
            raise UserError(f"--set {key} does not go with --continue-for, which sets it", "leave it out")
    own = [f"training.max_steps={step + steps}", f"training.continues_from={step}"]
    if "training.warmup_steps" not in keys:
        own.append("training.warmup_steps=0")
    return recipes.load(run.recipe_path, [*given, *own])


def _no_run(name: str | Path | Recipe, option: str) -> UserError:
    """The error for what is not the directory of a run, and ought to be."""
    hint = "name the directory of a finished run"
    run, where = name.name if isinstance(name, Recipe) else name, Path(str(name))
    if where.is_file() and RunDir(where.parent).is_run:
        return UserError(
            f"{option} goes on with a run, and {run} is its recipe", f"name the run: {where.parent}"
        )
    if (below := RunDir(Path(DEFAULT_FOLDER, run))).is_run:
        return UserError(f"{option} goes on with a run, and {run} is not here", f"name the run: {below.path}")
    try:
        usual = default_directory(recipes.load(name))
    except UserError:
        what = "is not a run directory" if where.is_dir() else "is not here"
        return UserError(f"{option} goes on with a run, and {run} {what}", hint)
    there = RunDir(usual).is_run
    return UserError(
        f"{option} goes on with a run, and {run} is a recipe", f"name its run: {usual}" if there else hint
    )


def planned(
    recipe: Recipe,
    given: Sequence[str],
    *,
    out: Path | None,
    resume: bool,
    smoke: bool,
    device: str,
    allow_pickle: bool,
) -> TrainingPlan:
    """The plan to train a recipe, or its smoke version, in its place.

    Args:
        given: what it was changed by, as `assignments` makes them.

    Raises:
        UserError: the run cannot start.
    """
    from mrt5cli.training.choose import choose
    from mrt5cli.training.plan import RunOptions

    usual = default_directory(recipe)
    notes: list[str] = []
    if smoke:
        full, keys = recipe, recipes.parse_overrides(given)
        recipe = recipes.smoke(full, keys)
        notes = recipes.left_out_of_smoke(full, keys)
        usual = usual.parent / "smoke" / default_directory(recipe).name
    # A smoke run in its own place may always be replaced; elsewhere nothing is.
    overwrite = smoke and out is None and not resume
    plan = choose(recipe, RunOptions(out or usual, resume, overwrite, device, allow_pickle))
    plan.notes.extend(notes)
    return plan
