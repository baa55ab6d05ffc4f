"""Trainings as jobs of Slurm, by the package submitit: checked before they are queued, queued again by
themselves when their time ends or another job takes their place, resumed when they run again."""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mrt5cli import own_code
from mrt5cli.errors import UserError
from mrt5cli.extras import how_to_install
from mrt5cli.rundir import RunDir
from mrt5cli.stopping import exit_code
from mrt5cli.text import say_on_stderr
from mrt5cli.training.pretrain import Training

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

FOLDER = "slurm"
"""Beside the runs: what is submitted, and the logs."""
REQUEUES = 1000
"""Of a job whose time has ended; one that never comes to a checkpoint ends at last."""
DEFAULTS: dict[str, int | str | bool] = {"nodes": 1, "ntasks_per_node": 1, "signal_delay_s": 300}
"""`signal_delay_s`: seconds before the end of its time at which a job is told to save."""
OURS = {"additional_parameters", "array", "error", "map_count", "output", "signal", "srun_args", "use_srun"}
"""Parameters that nobody else sets."""
EXAMPLE = "for example --slurm partition=gpu,time=12:00:00,gpus=8"


@dataclass(frozen=True)
class Request:
    """What jobs ask Slurm for.

    Attributes:
        minutes: that they may run at a time.
        parameters: of sbatch, by submitit's names; "gpus" is GPUs and processes on each node.
        cluster: "local" runs them as processes of this machine.
    """

    minutes: int
    parameters: dict[str, int | str | bool]
    cluster: Literal["slurm", "local"]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Request:
        """What `--slurm KEY=VALUE,KEY=VALUE` says; it may be repeated.

        Raises:
            UserError: it is not of that form, or lacks the time.
        """
        found: dict[str, int | str | bool] = dict(DEFAULTS)
        # A comma within a value, as in nodelist=a,b, has no KEY= behind it.
        for text in (part for each in texts for part in re.split(r",\s*(?=[A-Za-z][\w-]*=)", each)):
            key, equals, value = text.partition("=")
            key = key.strip().replace("-", "_")
            if not (re.fullmatch(r"[a-z]\w*", key) and equals and value):
                raise UserError(f"--slurm {text} is not KEY=VALUE", EXAMPLE)
            if key in OURS:
                raise UserError(f"--slurm {key}: mrt5 sets it itself", "leave it out")
            found[key] = int(value) if value.isdecimal() else True if value == "true" else value
        cluster, minutes = found.pop("cluster", "slurm"), _minutes(str(found.pop("time", "")))
        if cluster not in ("slurm", "local"):
            raise UserError(f"--slurm cluster={cluster} is unknown", "use slurm, or local for this machine")
        for key in ("gpus", "nodes", "ntasks_per_node", "signal_delay_s", "array_parallelism"):
            if not isinstance(found.get(key, 1), int) or found.get(key) is True or found.get(key) == 0:
                raise UserError(f"--slurm {key}={found[key]}: expected a number above 0", EXAMPLE)
        if "gpus" in found:
            found["gpus_per_node"] = found["ntasks_per_node"] = found.pop("gpus")
        if cluster == "local" and found["nodes"] != 1:
            raise UserError("--slurm cluster=local is one machine", "leave nodes out")
        return cls(minutes, found, cluster)  # type: ignore[arg-type]

    @property
    def processes(self) -> int:
        """That train one recipe together."""
        return int(self.parameters["nodes"]) * int(self.parameters["ntasks_per_node"])


def _minutes(text: str) -> int:
    """Minutes of a time as Slurm writes it: minutes, minutes:seconds, hours:minutes:seconds, days-hours..."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise UserError(
            f"--slurm time={text} is not a time" if text else "--slurm lacks the time a job may take", EXAMPLE
        )
    days, first, *rest = (int(part or 0) for part in match.groups())
    if not any((days, first, *rest)):
        raise UserError(f"--slurm time={text} is no time at all", EXAMPLE)
    if match[1]:  # days-hours:minutes:seconds, of which the last may be missing
        return max(1, 1440 * days + 60 * first + rest[0])
    return max(1, 60 * first + rest[0] if match[4] else first)


@dataclass(frozen=True)
class Prepared:
    """Jobs that have been checked, and where they go.

    Attributes:
        runs: a training's each.
        folder: of logs.
    """

    jobs: Sequence[Job]
    runs: Sequence[RunDir]
    folder: Path
    request: Request

    @property
    def script(self) -> str:
        """What sbatch will be given."""
        executor = self._executor(shown=True)
        if len(self.jobs) > 1:
            executor.parameters["map_count"] = len(self.jobs)
        return str(executor._make_submission_file_text(executor._submitit_command_str, ""))

    def submit(self) -> list[str]:
        """Queue the jobs, several as an array; returns their ids.

        Raises:
            UserError: there is no Slurm here, or it takes no such job.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = self._executor()
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with _outliving_us() if self.request.cluster == "local" else nullcontext():
                return [job.job_id for job in executor.submit_array(self.jobs)]
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(f"sbatch refuses the job: {error}", "--dry-run shows what it is given") from error

    def log(self, id_: str) -> Path:
        """Where the first process of a job says what it does."""
        return self.folder / f"{id_}_0_log.err"

    def _executor(self, *, shown: bool = False) -> Any:
        import submitit

        request, parameters = self.request, dict(self.request.parameters)
        if request.cluster == "local" and not shown:
            local = submitit.LocalExecutor(self.folder, max_num_timeout=REQUEUES)
            local.update_parameters(
                timeout_min=request.minutes,
                tasks_per_node=request.processes,
                gpus_per_node=parameters.get("gpus_per_node", 0),
                signal_delay_s=parameters["signal_delay_s"],
                setup=[parameters["setup"]] if "setup" in parameters else [],
            )
            return local
        if not shown and shutil.which("sbatch") is None:
            raise UserError(
                "there is no Slurm here: no command sbatch",
                "--dry-run prints the job; --slurm cluster=local runs it on this machine",
            )
        kind: Any = submitit.SlurmExecutor
        if shown:  # where there is no Slurm, too
            kind = type("Shown", (kind,), {"affinity": classmethod(lambda cls: 1)})
        known = kind._valid_parameters()
        given: dict[str, Any] = {key: value for key, value in parameters.items() if key in known}
        given |= {key: [given[key]] for key in ("setup", "teardown") if key in given}
        if cpus := parameters.get("cpus_per_task"):  # which srun no longer takes over from sbatch
            given["srun_args"] = [f"--cpus-per-task={cpus}"]
        others = {key: value for key, value in parameters.items() if key not in known}
        name = self.runs[0].path.name if len(self.runs) == 1 else "mrt5"
        given = {"job_name": name, "wckey": None, **given}
        executor = kind(self.folder, max_num_timeout=REQUEUES)
        executor.update_parameters(
            time=request.minutes, additional_parameters={"requeue": True, **others}, **given
        )
        return executor


@contextmanager
def _outliving_us() -> Iterator[None]:
    """Processes that start here hold neither our stdout nor our stderr open, for whose end a reader would
    wait, and go on when the terminal is closed."""
    if sys.platform == "win32":
        raise AssertionError("`prepare` refuses Windows")
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
        for descriptor, own in zip((1, 2), kept, strict=True):
            os.dup2(own, descriptor)
        for one in (nowhere, *kept):
            os.close(one)


def prepare(trainings: Sequence[Training], request: Request) -> Prepared:
    """Check trainings as far as this machine can, and make them jobs.

    Raises:
        UserError: submitit is not installed, or something would keep one of them from starting.
    """
    if sys.platform == "win32":
        raise UserError("--slurm needs Slurm, which does not run on Windows", "use WSL, or leave out --slurm")
    if importlib.util.find_spec("submitit") is None:
        raise UserError("--slurm needs the package submitit", how_to_install("slurm"))
    from submitit.helpers import environment_variables

    group = {} if request.processes == 1 else {"RANK": 0, "WORLD_SIZE": request.processes}
    runs: list[RunDir] = []
    for training in trainings:
        with environment_variables(**group):
            plan = replace(training, device="cpu").plan()  # GPUs are elsewhere
        if plan.options.overwrite and plan.run.is_run:
            raise UserError(f"{plan.run.path} holds a run", f"delete it: rm -r {plan.run.path}")
        if plan.run in runs:
            raise UserError(f"two recipes train into {plan.run.path}", "name one, or change its seed or name")
        runs.append(plan.run)
    folder = runs[0].path.absolute().parent / FOLDER
    return Prepared([Job.of(training) for training in trainings], runs, folder, request)


@dataclass(frozen=True)
class Job:
    """What a job does, in each of its processes: it begins a training, or resumes it if it has begun.

    Attributes:
        code: the user's own files, which must be imported first.
        pickled: the training, whose recipe may need them.
    """

    code: Sequence[Path]
    pickled: bytes

    @classmethod
    def of(cls, training: Training) -> Job:
        return cls([file.absolute() for file in own_code.files()], pickle.dumps(training))

    def __call__(self) -> None:
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        from mrt5cli.training.run import execute

        for file in self.code:
            own_code.import_file(file)
        training: Training = pickle.loads(self.pickled)
        came = _signals()
        if JobEnvironment().num_tasks > 1:
            TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        try:
            execute(replace(training, resume=True).plan())
        except UserError as error:
            say_on_stderr(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))
            raise SystemExit(error.exit_code) from None
        except KeyboardInterrupt as error:
            # All is saved. The warning of an end goes on to submitit, which queues the job again in the first
            # process; after a lone SIGTERM Slurm does so if another job takes the place, not after scancel.
            warning = JobEnvironment._usr_sig()
            if warning not in os.read(came, 4096):
                raise SystemExit(exit_code(error)) from None
            signal.raise_signal(warning)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _signals() -> int:
    """Where the numbers of all signals can be read that come from here on, whoever else takes them: before
    another job takes the place Slurm sends SIGTERM, and what it warns with a moment later."""
    if sys.platform == "win32":
        raise AssertionError("`prepare` refuses Windows")
    reader, writer = os.pipe()
    os.write(writer, b"\0")  # so that a read never waits
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader
