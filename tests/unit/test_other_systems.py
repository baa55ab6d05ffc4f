"""macOS and Windows, played by Linux: what they lack is removed before the package is imported."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import mrt5cli

BARE = """
import contextlib, importlib, json, os, signal, sys
from pathlib import Path

for name in json.loads(sys.argv[2]):  # libraries have versions for each system; ours is what is looked at
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
fcntl = sys.modules["fcntl"]

def take_away(module, *names):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)

take_away(os, "sched_getaffinity", "register_at_fork")
take_away(signal, "sigtimedwait", "sigwaitinfo")
opened, read_text = os.open, Path.read_text

def open_there(path, flags, *more, **also):
    ours = sys._getframe(1).f_globals["__name__"].startswith("mrt5cli")
    if ours and sys.platform == "win32" and os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return opened(path, flags, *more, **also)

def read_there(self, *more, **also):
    if str(self).startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "No such file or directory", str(self))
    return read_text(self, *more, **also)

def sync_there(descriptor):
    if sys.platform == "win32" and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(9, "Bad file descriptor")

os.open, Path.read_text, os.fsync = open_there, read_there, sync_there
sys.platform = sys.argv[1]
if sys.platform == "win32":
    for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"):
        sys.modules[name] = None
    take_away(os, "fork", "killpg", "getuid", "geteuid", "getgid", "setsid", "sysconf", "pwrite", "pread")
    take_away(os, "major", "minor", "mkfifo", "uname", "getloadavg", "fchmod", "chown", "set_blocking")
    take_away(signal, "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGKILL", "SIGQUIT", "SIGALRM", "SIGPIPE")
    take_away(signal, "pthread_sigmask", "SIG_BLOCK", "SIG_UNBLOCK", "SIG_SETMASK", "pthread_kill", "sigwait")
else:
    os.register_at_fork = lambda **functions: None
"""
IMPORTS = """
for name in json.loads(sys.argv[3]):
    importlib.import_module(name)
"""
WORKS = """
import torch
from mrt5cli import locks, places, stopping, writing
from mrt5cli.runtime import memory, memory_in_use, usable_cpus

here = Path(sys.argv[4])
windows = sys.platform == "win32"
assert windows == (len(stopping.SIGNALS) == 2)
writing.write_json(here / "new/a.json", {"a": 1})
writing.write_json(here / "new/a.json", {"a": 2})
assert json.loads((here / "new/a.json").read_text()) == {"a": 2}
for _ in range(2):
    with writing.whole_directory(here / "whole") as folder:
        writing.write_text(folder / "b/c.txt", "c")
assert (here / "whole/b/c.txt").read_text() == "c"
assert sorted(path.name for path in here.iterdir()) == ["new", "whole"]
writing.remove_directory(here / "whole")
with contextlib.suppress(OSError), writing.naming(here / "x"):
    raise OSError(28, "No space left on device", str(here / "x"))
assert writing.as_file_name('a:b"') == ("a%3Ab%22" if windows else 'a:b"')

lock = locks.take(here / "lock")
assert isinstance(lock, locks.Lock) and lock.lost() is None
held = locks.holder_of(here / "lock")
assert held is not None and held.is_same(lock.me)
if windows:  # a second process is known by its number; here it is ourselves
    assert isinstance(locks.take(here / "lock"), locks.Holder)
assert locks.read_on(here / "new/a.json")
with locks.unread(here / "new/a.json") as alone:
    assert alone
lock.release()
assert locks.holder_of(here / "lock") is None
with stopping.raised(), stopping.kept_from_children():
    pass
places.find_home()
os.environ.pop("HOME"), os.environ.pop("LOGNAME", None), os.environ.pop("USER", None)
if windows:
    places.find_home()
cpu = torch.device("cpu")
assert memory(cpu) > 2**28 and memory_in_use(cpu) > 2**20 and usable_cpus() >= 1
os.environ["HOME"] = str(here)

from typer.testing import CliRunner
from mrt5cli.cli import app
from mrt5cli.commands import env

env._of_libraries = dict
for words, code in {
    ("--help",): 0, ("recipe", "list"): 0, ("docs",): 0, ("env", "--json"): 0, ("runs", "list"): 0,
    ("pretrain", "quickstart_byt5", "--smoke", "--out", str(here / "run")): 0,
    ("reproduce", "miniature", "--smoke", "--out", str(here / "suite"), "--only", "none*"): 2,
}.items():
    result = CliRunner().invoke(app, words)
    assert result.exit_code == code, (words, result.output, result.exception)
meta = json.loads((here / "run/meta.json").read_text(encoding="utf-8"))
assert meta["status"] == "finished"
if windows:
    from mrt5cli.errors import UserError
    from mrt5cli.suite.processes import launcher_for
    from mrt5cli.training import slurm
    for refused in (lambda: launcher_for(None, "cpu", None), lambda: slurm.prepare([], None)):
        try:
            refused()
        except UserError as error:
            assert "Windows" in str(error) and "WSL" in str(error)
        else:
            raise AssertionError("it is not refused")
print("all done")
"""
TAKEN = "mrt5cli.models.fast.kernels"
"""Kernels are imported where Triton is, which is Linux alone."""


def modules() -> list[str]:
    found = [one.name for one in pkgutil.walk_packages(mrt5cli.__path__, "mrt5cli.")]
    return [name for name in found if not name.startswith(TAKEN) and not name.endswith("__main__")]


@pytest.mark.slow
@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_every_module_imports_and_a_run_trains_without_what_the_system_lacks(
    system: str, tmp_path: Path
) -> None:
    ours = modules()
    assert len(ours) > 150
    for name in ours:
        importlib.import_module(name)
    others = [name for name in sys.modules if not name.startswith(("mrt5cli", "test", "_pytest", "pytest"))]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            BARE + IMPORTS + WORKS,
            system,
            json.dumps(others),
            json.dumps(ours),
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0 and done.stdout.endswith("all done\n"), done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_types_hold_on_other_systems(system: str) -> None:
    root = Path(mrt5cli.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--platform", system],
        capture_output=True,
        text=True,
        cwd=root,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout
