"""Runs trainings as Slurm jobs with submitit.

Jobs are checked before they are queued, requeue themselves at a time limit or preemption, and then resume.
"""

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
"""Folder next to the runs, for submitted jobs and logs."""
REQUEUES = 1000
"""Maximum number of requeues at the time limit, so that a job that never reaches a checkpoint ends."""
DEFAULTS: dict[str, int | str | bool] = {"nodes": 1, "ntasks_per_node": 1, "signal_delay_s": 300}
"""`signal_delay_s`: seconds before its time limit at which a job is asked to save."""
OURS = {"additional_parameters", "array", "error", "map_count", "output", "signal", "srun_args", "use_srun"}
"""Parameters that users may not set."""
EXAMPLE = "for example --slurm partition=gpu,time=12:00:00,gpus=8"


@dataclass(frozen=True)
class Request:
    """The resources that jobs request.

    Attributes:
        minutes: time limit of a job between requeues.
        parameters: parameters of sbatch, by submitit's names.
        cluster: "slurm", or "local" to run the jobs as processes of this machine.
    """

    minutes: int
    parameters: dict[str, int | str | bool]
    cluster: Literal["slurm", "local"]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Request:
        """Parse the values of `--slurm KEY=VALUE,KEY=VALUE`, which may be repeated.

        Raises:
            UserError: a value does not have that form, or the time is missing.
        """
        found: dict[str, int | str | bool] = dict(DEFAULTS)
        # A comma inside a value, as in nodelist=a,b, is not followed by KEY=.
        for text in (part for each in texts for part in re.split(r",\s*(?=[A-Za-z][\w-]*=)", each)):
            key, equals, value = text.partition("=")
            key = key.strip().replace("-", "_")
            if not (re.fullmatch(r"[a-z]\w*", key) and equals and value):
                raise UserError(f"--slurm {text} is not KEY=VALUE", EXAMPLE)
            if key in OURS:
                raise UserError(f"--slurm {key} cannot be set, because mrt5 sets it", "leave it out")
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
        """The number of processes that train one recipe together."""
        return int(self.parameters["nodes"]) * int(self.parameters["ntasks_per_node"])


def _minutes(text: str) -> int:
    """Minutes of a time in Slurm's notation: minutes, minutes:seconds, hours:minutes:seconds, days-..."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise UserError(f"--slurm time={text} is not a time" if text else "--slurm requires a time", EXAMPLE)
    days, first, *rest = (int(part or 0) for part in match.groups())
    if not any((days, first, *rest)):
        raise UserError(f"--slurm time={text}: expected a time above 0", EXAMPLE)
    if match[1]:  # days-hours:minutes:seconds, where the later parts may be missing
        return max(1, 1440 * days + 60 * first + rest[0])
    return max(1, 60 * first + rest[0] if match[4] else first)


@dataclass(frozen=True)
class Prepared:
    """Checked jobs, ready to be queued.

    Attributes:
        jobs: one job per training.
        runs: the run directory of each job.
        folder: folder of the logs.
        request: the resources that each job requests.
    """

    jobs: Sequence[Job]
    runs: Sequence[RunDir]
    folder: Path
    request: Request

    @property
    def script(self) -> str:
        """The script for sbatch."""
        executor = self._executor(shown=True)
        if len(self.jobs) > 1:
            executor.parameters["map_count"] = len(self.jobs)
        return str(executor._make_submission_file_text(executor._submitit_command_str, ""))

    def submit(self) -> list[str]:
        """Queue the jobs, several as an array, and return their ids.

        Raises:
            UserError: Slurm is not installed, or sbatch rejects the jobs.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = self._executor()
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with _outliving_us() if self.request.cluster == "local" else nullcontext():
                return [job.job_id for job in executor.submit_array(self.jobs)]
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(f"sbatch rejects the job: {error}", "print its script with --dry-run") from error

    def log(self, id_: str) -> Path:
        """The log of a job's first process."""
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
                "Slurm is not available: the command sbatch was not found",
                "print the job with --dry-run, or run it on this machine with --slurm cluster=local",
            )
        kind: Any = submitit.SlurmExecutor
        if shown:  # the script must be printable without Slurm
            kind = type("Shown", (kind,), {"affinity": classmethod(lambda cls: 1)})
        known = kind._valid_parameters()
        given: dict[str, Any] = {key: value for key, value in parameters.items() if key in known}
        given |= {key: [given[key]] for key in ("setup", "teardown") if key in given}
        if cpus := parameters.get("cpus_per_task"):  # srun no longer inherits it from sbatch
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
    """Let processes that start in this block survive us.

    They ignore SIGHUP, and do not inherit our stdout and stderr, whose readers would wait for them to end.
    """
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
    """Check trainings as far as this machine allows, and turn them into jobs.

    Raises:
        UserError: submitit is not installed, or a training could not start.
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
            plan = replace(training, device="cpu").plan()  # the GPUs are on other machines
        if plan.options.overwrite and plan.run.is_run:
            raise UserError(f"{plan.run.path} contains a run", f"delete it: rm -r {plan.run.path}")
        if plan.run in runs:
            raise UserError(f"two recipes use {plan.run.path}", "change the name or seed of one, or omit it")
        runs.append(plan.run)
    folder = runs[0].path.absolute().parent / FOLDER
    return Prepared([Job.of(training) for training in trainings], runs, folder, request)


@dataclass(frozen=True)
class Job:
    """The work of a job in each of its processes: start a training, or resume it if it exists.

    Attributes:
        code: user-defined files to import first.
        pickled: the pickled `Training`, whose recipe may need these files.
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
            # A checkpoint is saved. A warning signal is passed to submitit, whose first process requeues the
            # job. After SIGTERM alone, Slurm requeues the job itself if it was preempted, not after scancel.
            warning = JobEnvironment._usr_sig()
            if warning not in os.read(came, 4096):
                raise SystemExit(exit_code(error)) from None
            signal.raise_signal(warning)

    def checkpoint(self) -> DelayedSubmission:
        """The job for submitit to requeue: the same one."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _signals() -> int:
    """A pipe from which the numbers of all later signals can be read, whatever else handles them.

    At a preemption, Slurm sends SIGTERM, and its warning signal a moment later.
    """
    if sys.platform == "win32":
        raise AssertionError("`prepare` refuses Windows")
    reader, writer = os.pipe()
    os.write(writer, b"\0")  # so that a read never waits
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader
