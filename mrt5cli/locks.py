"""Mutual exclusion between processes: a lock file that its holder keeps locked and signs every few seconds.

The system's lock (flock) is released with its holder, however that ends. But a file system shared by several
hosts may not support locks, or may keep them local to each host. So the holder also writes its identity and a
heartbeat into the file. Where flock does not decide, a process of another host counts as alive while its
heartbeat changes; changes are observed rather than compared with the time, because clocks of hosts differ.

Readers of a checkpoint share a lock on it, so that no process deletes it while they read, where flock works.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from mrt5cli.text import duration
from mrt5cli.writing import naming

if sys.platform == "win32":  # without flock, a holder is found by its number and its beat
    LOCK_EX = LOCK_SH = 0
else:
    import fcntl
    from fcntl import LOCK_EX, LOCK_SH

BEAT_SECONDS = 15.0
"""Interval of heartbeats. After four missed ones, a process known only by its heartbeat counts as dead."""
WAIT_SECONDS = 10.0
"""How long to wait for the holder of a lock, which may be about to end."""
SETTLE_SECONDS = 0.5
"""How long until a host that takes the same lock at the same moment becomes visible."""
POLL_SECONDS = 0.1
NO_LOCKS = frozenset((errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS))
"""Errors of file systems that do not support this kind of lock."""
LOCAL = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay"))
"""Types of file systems that only one host can mount."""
SIZE = 512
"""Bytes of a lock file; fixed, so that a shorter text overwrites a longer one completely."""

logger = logging.getLogger(__name__)


def _machine() -> tuple[str, str]:
    """Ids of this boot and of this process-id namespace: host names may repeat, pids do in containers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return boot, os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        return socket.gethostname(), ""


HOST = socket.gethostname()
MACHINE, SPACE = _machine()


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock.

    Attributes:
        pid: 0 if it is not known, as in the moment before the holder signs.
        started: when it took the lock, in seconds since 1970 by its own clock.
        beat: time of its last heartbeat, likewise.
        machine, space: see `_machine`.
        ticks: see `_ticks`.
    """

    pid: int
    host: str
    started: float
    beat: float
    machine: str
    space: str
    ticks: int

    def __str__(self) -> str:
        if not self.pid:
            return "it has not identified itself yet"
        since = datetime.fromtimestamp(self.started, UTC)
        ago = duration(max(0.0, time.time() - self.beat))
        when = f"since {since:%Y-%m-%d %H:%M:%S} UTC, last heartbeat {ago} ago"
        return f"pid {self.pid} on host {self.host}, {when}"

    @property
    def how_to_stop(self) -> str:
        """How to end the process, for a hint."""
        there = "" if self.host == HOST else f"on {self.host}: "
        return f"stop it ({there}kill {self.pid})" if self.pid else "stop it"

    def is_same(self, other: Holder) -> bool:
        """Whether both are the same process, regardless of the heartbeat."""
        return replace(self, beat=0.0) == replace(other, beat=0.0)


UNKNOWN = Holder(0, "", 0.0, 0.0, "", "", 0)


class Lock:
    """A lock file that this process holds. Created by `take`.

    Args:
        descriptor: the open file, locked if the file system supports locks.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor
        # Held open, so that no other folder can reuse its inode number. Windows cannot open folders.
        self.folder = -1 if sys.platform == "win32" else os.open(path.parent, os.O_RDONLY)
        self.place = os.stat(path.parent)
        now = round(time.time(), 3)
        self.me = Holder(os.getpid(), HOST, now, now, MACHINE, SPACE, _ticks(os.getpid()))
        self._ended = threading.Event()
        self._busy = threading.Lock()
        self._thread = threading.Thread(target=self._beats, daemon=True, name=f"beat of {path}")

    def begin(self) -> Holder | None:
        """Sign the file and start the heartbeat; returns a faster process of another host, if any."""
        try:
            with naming(self.path):
                self._sign()
        except OSError:
            self._close()
            raise
        if not _is_local(self.place):
            time.sleep(SETTLE_SECONDS)
            found = _read(self.path)
            if found is not None and not found.is_same(self.me):
                self._close()
                return found
        HELD[os.path.abspath(self.path)] = self
        self._thread.start()
        return None

    def lost(self) -> str | None:
        """What happened to the folder if this process no longer holds it, such as "was deleted"."""
        with self._busy:
            try:
                found = os.stat(self.path.parent)
            except (FileNotFoundError, NotADirectoryError):
                return "was deleted"
            if not os.path.samestat(found, self.place):
                return "was replaced by another directory"
            if not self.path.exists():
                return self._replace_file()
            holder = _read(self.path)
            if holder is None or holder.is_same(self.me):
                return None
            return f"was taken by another process, {holder}"

    def _replace_file(self) -> str | None:
        """Create the lock file again after it was deleted."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return None  # another process was faster and will sign it, which the next check shows
        if _flock(descriptor, LOCK_EX) is False:
            os.close(descriptor)
            return None
        os.close(self.descriptor)
        self.descriptor = descriptor
        self._sign()
        return None

    def _sign(self) -> None:
        self.me = replace(self.me, beat=round(time.time(), 3))
        text = json.dumps(asdict(self.me)).ljust(SIZE - 1).encode() + b"\n"
        if sys.platform == "win32":
            os.lseek(self.descriptor, 0, os.SEEK_SET)
            os.write(self.descriptor, text)
        else:
            os.pwrite(self.descriptor, text, 0)
        os.fsync(self.descriptor)  # other hosts see it only then

    def _beats(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            # A failed heartbeat is retried at the next interval: it must not end a run.
            with suppress(OSError):
                if self.lost() is None:
                    with self._busy:
                        if not self._ended.is_set():
                            self._sign()

    def release(self) -> None:
        """Release the lock. The file stays, empty, because another process may be waiting for it."""
        self._ended.set()
        if HELD.get(os.path.abspath(self.path)) is self:
            del HELD[os.path.abspath(self.path)]
        with self._busy:
            if self.descriptor >= 0:
                with suppress(OSError):
                    found = _read(self.path)
                    if found is not None and found.is_same(self.me):
                        os.ftruncate(self.descriptor, 0)
                if sys.platform != "win32":
                    with suppress(OSError):
                        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
                self._close()

    def _close(self) -> None:
        os.close(self.descriptor)
        if self.folder >= 0:
            os.close(self.folder)
        self.descriptor = self.folder = -1


HELD: dict[str, Lock] = {}
"""The locks that this process holds, by path of the file."""


def _leave_to_parent() -> None:
    """After a fork, close the parent's lock files in the child.

    A lock is released once every process that has the file open has ended, and data workers may outlive the
    trainer by seconds.
    """
    for lock in HELD.values():
        lock._close()
    HELD.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_leave_to_parent)


@dataclass
class _Watch:
    """Since when a process that is known only by its heartbeat has been observed without a new one."""

    holder: Holder
    since: float

    @property
    def is_over(self) -> bool:
        """Whether it counts as dead.

        It does after four intervals of observation, or after one and a half if its last heartbeat is already
        long past by our clock.
        """
        late = time.time() - self.holder.beat
        most, least = 4 * BEAT_SECONDS, 1.5 * BEAT_SECONDS
        return time.monotonic() - self.since >= min(most, max(least, most - late))


_WATCHES: dict[Path, _Watch] = {}
_SAID: list[Path] = []


def take(path: Path) -> Lock | Holder:
    """Take a lock if it is free, otherwise return its holder.

    A process of another host that held it without flock is reported for up to a minute after its death.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            locked = _flock(descriptor, LOCK_EX)
            holder, certain = _in_the_way(locked, path)
            if holder is not None and (certain or not _is_dead(path, holder)):
                os.close(descriptor)
                return holder
            if _is_at(descriptor, path):
                break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # deleted since, or replaced
    if locked is None and not _SAID:
        _SAID.append(path)
        logger.warning(
            "the file system of %s does not support locks: processes of other hosts are detected by their "
            "heartbeat only, every %g s",
            path.parent,
            BEAT_SECONDS,
        )
    _WATCHES.pop(path, None)
    lock = Lock(path, descriptor)
    return lock.begin() or lock


def _is_dead(path: Path, holder: Holder) -> bool:
    """Whether the holder's heartbeat has not changed for long enough, over this and earlier calls."""
    watch = _WATCHES.get(path)
    if watch is None or watch.holder != holder:
        _WATCHES[path] = watch = _Watch(holder, time.monotonic())
    return watch.is_over


def wait_for(path: Path) -> Lock | Holder:
    """Take a lock, waiting for a holder that is about to end; otherwise return the living holder."""
    first, begin = None, time.monotonic()
    while isinstance(found := take(path), Holder):
        if first is None or not first.is_same(found):
            first = found
        elsewhere = found.pid and (found.machine, found.space) != (MACHINE, SPACE)
        most = 5 * BEAT_SECONDS if elsewhere else WAIT_SECONDS
        if (elsewhere and found.beat != first.beat) or time.monotonic() - begin > most:
            return found
        time.sleep(POLL_SECONDS)
    return found


def holder_of(path: Path) -> Holder | None:
    """The holder of a lock as far as it is visible now, or None."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    try:
        locked = _flock(descriptor, LOCK_SH)
        found, certain = _in_the_way(locked, path)
    finally:
        os.close(descriptor)
    if found is None or certain or abs(time.time() - found.beat) < 4 * BEAT_SECONDS:
        return found
    return None


def _in_the_way(locked: bool | None, path: Path) -> tuple[Holder | None, bool]:
    """Who prevents a lock from being taken, and whether that is certain or only if it is alive elsewhere.

    Args:
        locked: the result of `_flock`.
    """
    found = _read(path)
    if locked is False:
        return found or UNKNOWN, True
    if found is None or found.machine != MACHINE:
        return found, False
    if locked:
        return None, True
    if found.space != SPACE:
        return found, False
    return (found if _lives(found) else None), True


def _lives(holder: Holder) -> bool:
    """Whether a process of this host is alive and not a later one with the same pid."""
    import psutil  # os.kill(pid, 0) would stop a process on Windows

    return psutil.pid_exists(holder.pid) and _ticks(holder.pid) == holder.ticks


def _ticks(pid: int) -> int:
    """Start time of a process of this host, in ticks since boot; 0 if it is not available."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    except OSError:  # not Linux, or the process has ended
        return 0


def _read(path: Path) -> Holder | None:
    """Who signed a lock file, or None if it is released.

    The file is opened again each time: over a network, an open one may show stale content.
    """
    for _ in range(5):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, PermissionError):  # SMB: a locked file cannot be read by others
            return None
        if not text.strip():
            return None
        with suppress(ValueError, TypeError):
            return Holder(**json.loads(text))
        time.sleep(0.01)  # it is being written
    return None


def _flock(descriptor: int, how: int) -> bool | None:
    """Whether a file could be locked; None if its file system does not support locks."""
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        else:
            return True
    return None


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at its path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _is_local(place: os.stat_result) -> bool:
    """Whether a folder is known to be on a file system that only this host can mount."""
    if sys.platform == "win32":
        return False
    device = f"{os.major(place.st_dev)}:{os.minor(place.st_dev)}"
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            words = line.split()
            if words[2] == device:
                return words[words.index("-") + 1] in LOCAL
    return False


# --- readers ------------------------------------------------------------------------------------------------

_READ: dict[tuple[int, int], int] = {}
"""Open files of the checkpoints that this process reads, kept until it ends."""


def read_on(file: Path) -> bool:
    """Protect a file's folder from `unread` until this process ends; False if it is being deleted.

    Windows itself refuses to delete open files.
    """
    if sys.platform == "win32":
        return file.parent.is_dir()
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:  # the actual reader reports it
        return file.parent.is_dir()
    found = os.fstat(descriptor)
    key = found.st_dev, found.st_ino
    if key in _READ or _flock(descriptor, LOCK_SH) is False or not _is_at(descriptor, file):
        os.close(descriptor)
        return key in _READ
    try:
        file.read_bytes()
    except PermissionError:  # SMB: a locked file cannot be read, not even by this process
        os.close(descriptor)
        return True
    _READ[key] = descriptor
    return True


@contextmanager
def unread(file: Path) -> Iterator[bool]:
    """Exclude readers of a file's folder in order to delete it; yields False if another process reads it.

    This process's own protection is dropped: a resumed run has finished reading its checkpoint.
    """
    if sys.platform == "win32":
        yield True
        return
    try:
        descriptor = os.open(file, os.O_RDWR)
    except OSError:
        yield True  # it is incomplete, so no process reads it
        return
    found = os.fstat(descriptor)
    if (own := _READ.pop((found.st_dev, found.st_ino), None)) is not None:
        os.close(own)
    try:
        yield _flock(descriptor, LOCK_EX) is not False
    finally:
        os.close(descriptor)
