"""Locks: on file systems that know flock, keep it to a host or know none; of hosts alive, dead, with other
clocks; of holders that are killed, and of folders that go away under them."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mrt5cli import locks
from mrt5cli.locks import Holder, Lock


@pytest.fixture(autouse=True)
def fast_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT", 0.1), ("WAIT", 0.2), ("SETTLE", 0.2), ("POLL", 0.01)):
        monkeypatch.setattr(locks, f"{name}_SECONDS", seconds)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.lock"


def granted(descriptor: int, how: int) -> None:
    """flock as a file system has it that keeps locks to a host, seen from another host."""


def refusing(number: int) -> Callable[..., None]:
    """flock as a file system has it that knows no locks, or writing as a full disk has it."""

    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refused


@contextmanager
def held(path: Path) -> Iterator[Lock]:
    lock = locks.take(path)
    assert isinstance(lock, Lock)
    try:
        yield lock
    finally:
        lock.release()


def written(path: Path) -> Holder:
    found = locks._read(path)
    assert found is not None
    return found


def elsewhere(**more: object) -> Holder:
    now = time.time()
    return replace(Holder(4711, "far", now, now, "another machine", "pid:[1]", 1), **more)


def sign(path: Path, holder: Holder) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)  # in place, as a holder does: never empty
    os.pwrite(descriptor, json.dumps(asdict(holder)).ljust(locks.SIZE).encode(), 0)
    os.close(descriptor)


@contextmanager
def another_host(path: Path, ahead: float = 0.0) -> Iterator[None]:
    """A process of another host that holds a lock, and lives, its clock so many seconds ahead of ours."""
    ended, every = threading.Event(), locks.BEAT_SECONDS
    holder = elsewhere(started=time.time() + ahead)
    sign(path, replace(holder, beat=time.time() + ahead))

    def beats() -> None:
        while not ended.wait(every):
            sign(path, replace(holder, beat=time.time() + ahead))

    thread = threading.Thread(target=beats)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_who_holds_it_is_seen_and_nobody_afterwards(path: Path) -> None:
    assert locks.holder_of(path) is None
    with held(path) as lock:
        found = locks.holder_of(path)
        assert found is not None and (found.pid, found.host) == (os.getpid(), locks.HOST)
        assert f"pid {os.getpid()} on host {locks.HOST}, since " in str(
            found
        ) and "last heartbeat 0 s ago" in str(found)
        assert found.how_to_stop == f"stop it (kill {os.getpid()})"
        refused = locks.wait_for(path)
        assert isinstance(refused, Holder) and refused.is_same(lock.me)
    assert locks.holder_of(path) is None and path.read_bytes() == b""
    with held(path):
        pass


def test_it_beats_until_it_is_let_go(path: Path) -> None:
    with held(path) as lock:
        first = written(path)
        time.sleep(3 * locks.BEAT_SECONDS)
        later = written(path)
        assert later.is_same(first) and later.beat > first.beat
        size = path.stat().st_size
        assert size == locks.SIZE
    lock._thread.join(5)
    assert not lock._thread.is_alive()


def test_a_beat_that_fails_ends_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(path) as lock:
        with monkeypatch.context() as full:
            full.setattr(os, "pwrite", refusing(errno.ENOSPC))
            time.sleep(3 * locks.BEAT_SECONDS)
        assert lock._thread.is_alive() and lock.lost() is None
        before = written(path).beat
        time.sleep(3 * locks.BEAT_SECONDS)
        assert written(path).beat > before


def test_a_lock_that_cannot_be_signed_is_not_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", refusing(errno.ENOSPC))
        with pytest.raises(OSError, match=r"run\.lock"):
            locks.take(path)
    with held(path):
        pass


# --- file systems without locks, or with those of a host alone ----------------------------------------------


@pytest.mark.parametrize("number", sorted(locks.NO_LOCKS))
def test_without_flock_a_process_of_this_host_counts_while_it_lives(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(number))
    monkeypatch.setattr(locks, "_SAID", [])
    with held(path) as lock:
        assert "does not support locks" in caplog.text
        assert isinstance(locks.wait_for(path), Holder)
        found = locks.holder_of(path)
        assert found is not None and found.is_same(lock.me)
    ended = subprocess.Popen(["true"])
    ended.wait()
    sign(path, replace(lock.me, pid=ended.pid))
    assert locks.holder_of(path) is None
    with held(path):
        pass
    # The number is that of a process again, which is another one.
    sign(path, replace(lock.me, ticks=lock.me.ticks - 1))
    assert locks.holder_of(path) is None
    with held(path):
        pass


def test_what_flock_refuses_otherwise_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        locks.take(path)


@pytest.mark.parametrize("flock", [granted, refusing(errno.ENOLCK)], ids=["local", "none"])
@pytest.mark.parametrize("ahead", [0.0, -0.3, 0.3, -5.0, 5.0, -3600.0, 3600.0])
def test_another_host_counts_while_it_beats_whatever_its_clock(
    path: Path, monkeypatch: pytest.MonkeyPatch, flock: Callable[..., None], ahead: float
) -> None:
    monkeypatch.setattr(fcntl, "flock", flock)
    with another_host(path, ahead):
        found = locks.wait_for(path)
        assert isinstance(found, Holder) and found.host == "far"
        assert found.how_to_stop == "stop it (on far: kill 4711)"
    begin = time.monotonic()
    lock = locks.wait_for(path)  # it has died
    assert isinstance(lock, Lock) and time.monotonic() - begin < 5 * locks.BEAT_SECONDS + locks.SETTLE_SECONDS
    lock.release()


def test_another_host_that_beats_is_not_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", granted)
    with another_host(path):
        monkeypatch.setattr(locks, "BEAT_SECONDS", 5.0)
        begin = time.monotonic()
        assert isinstance(locks.wait_for(path), Holder)
        assert time.monotonic() - begin < 5.0


def test_another_host_that_is_quicker_at_the_same_moment_has_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", granted)
    monkeypatch.setattr(locks, "_is_local", lambda descriptor: False)
    monkeypatch.setattr(time, "sleep", lambda seconds: sign(path, elsewhere()))
    found = locks.take(path)
    assert isinstance(found, Holder) and found.host == "far" and not locks.HELD


def test_only_types_that_are_known_are_one_host_s() -> None:
    assert not locks._is_local(os.stat("/proc"))


def test_what_is_to_be_seen_of_another_host_goes_by_the_clock(path: Path) -> None:
    sign(path, elsewhere(beat=time.time() - 1.5 * locks.BEAT_SECONDS))
    found = locks.holder_of(path)
    assert found is not None and found.pid == 4711
    sign(path, elsewhere(beat=time.time() - 5 * locks.BEAT_SECONDS))
    assert locks.holder_of(path) is None


def test_a_stale_beat_is_watched_before_its_lock_is_taken(path: Path) -> None:
    """The holder may have hung with the file server, which comes back for both at once."""
    sign(path, elsewhere(beat=time.time() - 3600))
    assert isinstance(locks.take(path), Holder)
    sign(path, elsewhere(beat=time.time() - 3599))
    time.sleep(1.6 * locks.BEAT_SECONDS)
    assert isinstance(locks.take(path), Holder)  # it beat in between
    time.sleep(1.6 * locks.BEAT_SECONDS)
    with held(path):
        pass


SAME_MOMENT = """
import fcntl, os, sys, time
from pathlib import Path
from mrt5cli import locks
def flock(descriptor, how): raise OSError(37, "No locks available")
fcntl.flock = flock
locks.HOST = locks.MACHINE = sys.argv[2]
locks.logger.disabled = True
time.sleep(max(0.0, float(sys.argv[3]) - time.time()))
found = locks.take(Path(sys.argv[1]))
print("held" if isinstance(found, locks.Lock) else "refused", flush=True)
time.sleep(0.8)
print(isinstance(found, locks.Lock) and found.lost())
"""


def test_of_hosts_that_come_at_one_moment_without_locks_one_stays(path: Path) -> None:
    at = time.time() + 1
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", SAME_MOMENT, str(path), f"host{number}", str(at)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    told = [host.communicate(timeout=60)[0].split("\n")[:2] for host in hosts]
    # One that was late may have taken it from one that had it; that one is notified.
    assert sum(said == ["held", "None"] for said in told) == 1, told


# --- holders that end ---------------------------------------------------------------------------------------

FORKING = """
import os, sys, time
from pathlib import Path
from mrt5cli import locks
lock = locks.take(Path(sys.argv[1]))
if os.fork() == 0:
    print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_a_killed_holder_is_gone_at_once_though_its_workers_live(path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", FORKING, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        found = locks.wait_for(path)
        assert isinstance(found, Holder) and found.pid == holder.pid
        holder.kill()
        holder.wait()
        os.kill(worker, 0)
        assert locks.holder_of(path) is None
        with held(path):
            pass
    finally:
        os.kill(worker, 9)
        holder.stdout.close()


def test_a_lock_that_is_let_go_meanwhile_is_had(path: Path) -> None:
    with held(path) as lock:
        threading.Timer(0.1, lock.release).start()
        found = locks.wait_for(path)
        assert isinstance(found, Lock)
        found.release()


def test_one_that_has_not_signed_yet_holds_it_too(path: Path) -> None:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for text in ("", "{", "[]", '{"pid": 3}'):
            path.write_text(text)
            found = locks.holder_of(path)
            assert found == locks.UNKNOWN and "not identified itself" in str(found)
            assert locks.take(path) == locks.UNKNOWN


# --- folders that go away -----------------------------------------------------------------------------------


def test_a_folder_that_is_lost_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with held(folder / "lock") as lock:
        assert lock.lost() is None
        folder.rename(tmp_path / "moved")
        assert lock.lost() == "was deleted"
        folder.mkdir()
        assert lock.lost() == "was replaced by another directory"
        time.sleep(2 * locks.BEAT_SECONDS)
        assert list(folder.iterdir()) == []
        folder.rmdir()
        (tmp_path / "moved").rename(folder)
        assert lock.lost() is None
        sign(lock.path, elsewhere())
        assert str(lock.lost()).startswith("was taken by another process, pid 4711 on host far")
        time.sleep(2 * locks.BEAT_SECONDS)
        assert written(lock.path).pid == 4711  # and it signs no more
        folder.rename(tmp_path / "gone")
        folder.mkdir()
        assert lock.lost() == "was replaced by another directory"


def test_a_lock_file_that_is_deleted_is_made_again(path: Path) -> None:
    with held(path) as lock:
        path.unlink()
        assert lock.lost() is None
        assert written(path).is_same(lock.me)
        assert isinstance(locks.take(path), Holder)


# --- readers ------------------------------------------------------------------------------------------------


def test_what_is_read_is_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_READ", {})
    file = tmp_path / "config.json"
    file.write_text("{}")
    with locks.unread(file) as free:
        assert free
        assert not locks.read_on(file)  # it is about to go
    assert locks.read_on(file) and locks.read_on(file)
    [descriptor] = locks._READ.values()
    monkeypatch.setattr(locks, "_READ", {})  # as another process sees it
    with locks.unread(file) as free:
        assert not free
    os.close(descriptor)
    with locks.unread(file) as free:
        assert free
    assert locks.read_on(file)
    with locks.unread(file) as free:
        assert free and not locks._READ  # it was our own
    assert not locks.read_on(tmp_path / "gone" / "config.json")
    assert locks.read_on(tmp_path / "other.json")  # damaged: loading it reports that


def test_where_locked_files_cannot_be_read_readers_lock_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def smb(self: Path) -> bytes:
        raise PermissionError

    monkeypatch.setattr(locks, "_READ", {})
    file = tmp_path / "config.json"
    file.write_text("{}")
    monkeypatch.setattr(Path, "read_bytes", smb)
    assert locks.read_on(file) and locks._READ == {}
    with locks.unread(file) as free:
        assert free
