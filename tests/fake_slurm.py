"""Slurm as much as a test needs: `sbatch`, `srun` and `scontrol` that run jobs as processes of this machine.

    python fake_slurm.py sbatch SCRIPT | srun OPTIONS PYTHON ... | scontrol requeue JOB

The folder FAKE_SLURM describes each job: its environment, and the ids of its processes. Like the
real one, `scontrol requeue` ends what still runs of the job, and runs its script again.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

JOB = 4711


def install(folder: Path) -> dict[str, str]:
    """The commands in a folder, and the environment in which they are found."""
    (folder / "bin").mkdir()
    for name in ("sbatch", "srun", "scontrol"):
        command = folder / "bin" / name
        command.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"\n')
        command.chmod(0o755)
    return {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "FAKE_SLURM": str(folder)}


def processes(folder: Path, job: str) -> list[int]:
    """Of a job that runs."""
    file = folder / f"{job}.pids"
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


def started(folder: Path, job: str) -> int:
    """How often a job has been started."""
    return len((folder / f"{job}.starts").read_text().split())


def warn(folder: Path, job: str, *numbers: int) -> None:
    """Send signals to the processes of a job, as Slurm does before it ends them."""
    for number in numbers:
        for pid in processes(folder, job):
            os.kill(pid, number)
        time.sleep(0.1)


def _start(folder: Path, job: str) -> None:
    told = json.loads((folder / f"{job}.json").read_text())
    with (folder / f"{job}.starts").open("a") as file:
        file.write("1\n")
    environment = {**os.environ, **told["environment"]}
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.Popen(["bash", told["script"]], env=environment, start_new_session=True, **quiet)


def _sbatch(folder: Path, script: str) -> None:
    text = Path(script).read_text()
    (folder / "script.sh").write_text(text)
    array = re.search(r"^#SBATCH --array=0-(\d+)", text, re.MULTILINE)
    tasks = int(re.search(r"^#SBATCH --ntasks-per-node=(\d+)", text, re.MULTILINE)[1])  # type: ignore[index]
    for number in range(int(array[1]) + 1 if array else 1):
        job = f"{JOB}_{number}" if array else str(JOB)
        environment = {"SLURM_JOB_ID": str(JOB + number), "SLURM_NTASKS": str(tasks), "FAKE_SLURM_JOB": job}
        if array:
            environment |= {"SLURM_ARRAY_JOB_ID": str(JOB), "SLURM_ARRAY_TASK_ID": str(number)}
        told = {"script": str(folder / "script.sh"), "environment": environment}
        (folder / f"{job}.json").write_text(json.dumps(told))
        if "FAKE_SLURM_HOLDS" not in os.environ:
            _start(folder, job)
    print(f"Submitted batch job {JOB}")


def _srun(folder: Path, words: list[str]) -> None:
    given = {name: words[words.index(name) + 1] for name in ("--output", "--error")}
    command, job = words[words.index(sys.executable) :], os.environ["FAKE_SLURM_JOB"]
    array, _, number = job.partition("_")
    ran = []
    for task in range(int(os.environ["SLURM_NTASKS"])):
        named = {"%j": job, "%A": array, "%a": number, "%t": str(task)}
        options = given
        for sign, value in named.items():
            options = {name: path.replace(sign, value) for name, path in options.items()}
        out, err = (open(options[name], "ab") for name in ("--output", "--error"))  # noqa: SIM115
        environment = {**os.environ, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)}
        ran.append(subprocess.Popen(command, env=environment, stdout=out, stderr=err))
    (folder / f"{job}.pids").write_text(" ".join(str(process.pid) for process in ran))
    codes = [process.wait() for process in ran]
    with (folder / f"{job}.codes").open("a") as file:
        file.write(f"{codes}\n")


def _requeue(folder: Path, job: str) -> None:
    caller = os.getppid()
    for pid in processes(folder, job):
        if pid != caller:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    with (folder / "requeued").open("a") as file:
        file.write(f"{job}\n")
    _start(folder, job)


if __name__ == "__main__":
    place, (_, command, *rest) = Path(os.environ["FAKE_SLURM"]), sys.argv
    if command == "sbatch":
        _sbatch(place, rest[-1])
    elif command == "srun":
        _srun(place, rest)
    else:
        _requeue(place, rest[-1])
