"""From a recipe's name to a finished run: `mrt5cli.pretrain`, and the work of `mrt5 pretrain` and `finetune`.

Nothing heavy is imported before the recipe has been checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """Train or fine-tune a model by a recipe, and return its run directory.

    Pass the directory's `path` to `load` and `evaluate`; its `model` is in Hugging Face layout. The recipe's
    seed initializes the generators of Python, numpy and torch. Under torchrun or accelerate launch, every
    process calls this.

    Args:
        recipe: a recipe file, the name of a shipped recipe, or a recipe returned by a run directory's
            `recipe()`. With `continue_for`, a run or its directory.
        settings: keys of the recipe and their values, as for `--set`:
            `{"training.max_steps": 100, "task.languages": ["en", "sw"]}`. A mapping replaces the whole
            section.
        start: the model to start from instead of the recipe's: a run, a checkpoint directory or a Hub id.
        revision: branch, tag or commit of a Hub model to start from.
        out: the run directory; by default runs/NAME-seedSEED.
        resume: continue from the latest checkpoint; without one, start; a finished run is left as it is.
        continue_for: number of steps to train a finished run further, by its own recipe and `settings`.
            Weights, optimizer, controller, random generators and data continue; the learning-rate schedule
            starts again, without warmup unless one is set. It stays one run, in its directory.
        smoke: shrink the recipe to seconds on a CPU, to test that it runs; by default in runs/smoke/.
        device: "cpu", "cuda", "cuda:1" (a GPU's number) or "auto", which uses a GPU if there is one.
        allow_pickle: also accept pickled weights, see `load`.
        code: user-defined Python files to import first, which may register tasks, shorteners and metrics. The
            run remembers them, and every command that opens it imports them again.
        progress: report the plan and the progress on stderr.

    Raises:
        RecipeError: the recipe or a setting is wrong; lists all problems.
        UserError: the run cannot start: the recipe, model, data or device does not exist; the directory
            contains another run; the disk is too small.
        RunFailed: the run started and could not continue. Its checkpoints are intact.
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
    """The overrides of --set, followed by those of --revision and --from."""
    keys: dict[str, str | None] = {}
    if start is not None:
        # The recipe's shape and revision belong to the model that this one replaces.
        keys = {"start": start, "revision": None, "shape": None, "initialization": "t5"}
    if revision is not None:
        keys["revision"] = revision
    return [*(overrides or ()), *(f"model.{key}={inline(value)}" for key, value in keys.items())]


@dataclass(frozen=True)
class Training:
    """A recipe and how to train it.

    Attributes:
        recipe: the full recipe, with the overrides applied.
        given: those overrides, as returned by `assignments`.
    """

    recipe: Recipe
    given: Sequence[str]
    out: Path | None
    resume: bool
    smoke: bool
    device: str
    allow_pickle: bool

    def plan(self) -> TrainingPlan:
        """Plan the training of the recipe, or of its smoke version.

        Raises:
            UserError: the run cannot start.
        """
        from mrt5cli.training.choose import choose
        from mrt5cli.training.plan import RunOptions

        recipe, usual = self.recipe, default_directory(self.recipe)
        notes: list[str] = []
        if self.smoke:
            keys = recipes.parse_overrides(self.given)
            recipe = recipes.smoke(self.recipe, keys)
            notes = recipes.left_out_of_smoke(self.recipe, keys)
            usual = usual.parent / "smoke" / default_directory(recipe).name
        # A smoke run in the default place may always be replaced; elsewhere nothing is.
        overwrite = self.smoke and self.out is None and not self.resume
        options = RunOptions(self.out or usual, self.resume, overwrite, self.device, self.allow_pickle)
        plan = choose(recipe, options)
        plan.notes.extend(notes)
        return plan


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
    """Load the recipe to train; the arguments are those of `pretrain`.

    Args:
        given: overrides, as returned by `assignments`.

    Raises:
        RecipeError, UserError: as in `recipe.load`, or there is no run to continue.
    """
    if continue_for is not None:
        others = {"--out": out is not None, "--resume": resume, "--smoke": smoke}
        if other := next((name for name, is_given in others.items() if is_given), None):
            hint = "to finish an interrupted run, pass --resume alone" if resume else f"leave out {other}"
            reason = "which trains a run in its own directory"
            raise UserError(f"{other} cannot be combined with --continue-for, {reason}", hint)
        chosen, out, resume = _continued(recipe, given, continue_for), Path(str(recipe)), True
    else:
        if resume and out is not None:
            own_code.import_again(out)  # the recipe may use kinds that the run's own code registers
        chosen = recipes.load(recipe, given, smoke=smoke)
    return Training(chosen, given, out, resume, smoke, device, allow_pickle)


def _continued(name: str | Path | Recipe, given: Sequence[str], steps: int) -> Recipe:
    """The recipe that trains a finished run further.

    Only the recipe states that, so a segment is the same whether it starts, resumes or is queued as a job.

    Args:
        name: the run's directory.
        given: further overrides of its recipe.
        steps: number of additional steps.
    """
    option = f"--continue-for {steps}"
    if steps < 1:
        raise UserError(f"{option}: expected a number of steps, at least 1")
    run = RunDir(Path(str(name)))
    if isinstance(name, Recipe) or not run.is_run:
        raise _no_run(name, option)
    if runtime.leads():
        run.check_free()
    state = run.state()
    step = state.last_step or run.recipe().training.max_steps
    if not state.finished and not runtime.leads():
        step = state.meta["sessions"][-1]["segment"]["from_step"]  # the leading process has started it
    elif not state.finished:
        # No process trains it: `check_free` would have refused.
        status = str(state.meta.get("status")).replace("running", "interrupted")
        raise UserError(
            f"{option} requires a finished run, but {name} is {status}", f"first: {run.resume_command}"
        )
    keys = [text.partition("=")[0].strip() for text in given]
    for key in ("training", "training.max_steps", "training.continues_from"):
        if key in keys:
            raise UserError(
                f"--set {key} cannot be combined with --continue-for, which sets it", "leave it out"
            )
    own = [f"training.max_steps={step + steps}", f"training.continues_from={step}"]
    if "training.warmup_steps" not in keys:
        own.append("training.warmup_steps=0")
    return recipes.load(run.recipe_path, [*given, *own])


def _no_run(name: str | Path | Recipe, option: str) -> UserError:
    """The error for a name that --continue-for does not accept, because it is not a run directory."""
    run, where = name.name if isinstance(name, Recipe) else name, Path(str(name))
    what, path = "does not exist", None
    if where.is_file() and RunDir(where.parent).is_run:
        what, path = "is its recipe", where.parent
    elif (below := RunDir(Path(DEFAULT_FOLDER, run))).is_run:
        path = below.path
    else:
        try:
            usual = default_directory(recipes.load(name))
            what, path = "is a recipe", usual if RunDir(usual).is_run else None
        except UserError:
            what = "is not a run directory" if where.is_dir() else what
    hint = "name the directory of a finished run" if path is None else f"name the run: {path}"
    return UserError(f"{option} requires a run directory, but {run} {what}", hint)
