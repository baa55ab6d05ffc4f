"""One process at a time: a lock file that its holder keeps locked, and signs every few seconds.

The system's lock (flock) goes with its holder, however that ends. But a file system of several hosts may know
no locks, or keep them to each host. So the holder also writes into the file who it is and, with a beat, that
it lives. Where flock does not decide, a process of another host counts as alive while its beat changes: that
is watched, as the clocks of hosts differ.

Readers of a checkpoint hold it in common, so that nobody deletes it under them, where flock is known.
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
"""Between two beats; after four without one, a process that shows by its beat alone counts as dead."""
WAIT_SECONDS = 10.0
"""How long to wait for a process that holds a lock, and may be ending."""
SETTLE_SECONDS = 0.5
"""How long another host that takes the same lock, at the same moment, may need to show."""
POLL_SECONDS = 0.1
NO_LOCKS = frozenset((errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS))
"""How file systems say that they know no locks, or none of this kind."""
LOCAL = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay"))
"""Types of file systems that are one host's alone."""
SIZE = 512
"""Bytes of a lock file, so that a shorter text leaves nothing of a longer one."""

logger = logging.getLogger(__name__)


def _machine() -> tuple[str, str]:
    """What tells apart hosts that may have one name, and on one host the spaces that number processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return boot, os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        return socket.gethostname(), ""


HOST = socket.gethostname()
MACHINE, SPACE = _machine()


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock.

    Attributes:
        pid: 0 where it is not known, as in the moment before it has signed.
        started: when it took the lock, seconds since 1970 by its own clock.
        beat: when it last said that it lives, likewise.
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
            return "which has not said who it is"
        since = datetime.fromtimestamp(self.started, UTC)
        ago = duration(max(0.0, time.time() - self.beat))
        return f"pid {self.pid} on host {self.host}, since {since:%Y-%m-%d %H:%M:%S} UTC, last beat {ago} ago"

    @property
    def how_to_stop(self) -> str:
        """What ends it, for a hint."""
        there = "" if self.host == HOST else f"on {self.host}: "
        return f"stop it ({there}kill {self.pid})" if self.pid else "stop it"

    def is_same(self, other: Holder) -> bool:
        """Whether both are one process, at one beat or another."""
        return replace(self, beat=0.0) == replace(other, beat=0.0)


UNKNOWN = Holder(0, "", 0.0, 0.0, "", "", 0)


class Lock:
    """A lock file that this process holds, in a folder that it watches over. Made by `take`.

    Args:
        descriptor: of the file, locked where the file system knows locks.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor
        # Held open, so that no other folder can get its number; Windows opens no folders.
        self.folder = -1 if sys.platform == "win32" else os.open(path.parent, os.O_RDONLY)
        self.place = os.stat(path.parent)
        now = round(time.time(), 3)
        self.me = Holder(os.getpid(), HOST, now, now, MACHINE, SPACE, _ticks(os.getpid()))
        self._ended = threading.Event()
        self._busy = threading.Lock()
        self._thread = threading.Thread(target=self._beats, daemon=True, name=f"beat of {path}")

    def begin(self) -> Holder | None:
        """Sign, and go on signing; returns the process of another host that has been quicker."""
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
        """What has become of the folder, if it is not this process's any more: "was deleted"."""
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
        """Make a lock file that somebody has deleted again."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return None  # who was quicker signs it, which the next look shows
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
        os.fsync(self.descriptor)  # over a network, others see it only then

    def _beats(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            # A disk that takes no beat is asked again at the next one: no run ends of it.
            with suppress(OSError):
                if self.lost() is None:
                    with self._busy:
                        if not self._ended.is_set():
                            self._sign()

    def release(self) -> None:
        """Let go; the file stays, empty, as another process may be waiting at it."""
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
"""What this process holds, by the path of the file."""


def _leave_to_parent() -> None:
    """In a fork: close what the parent has locked. A lock is free when all who have it open have ended, and
    those that prepare batches may outlive a trainer by seconds."""
    for lock in HELD.values():
        lock._close()
    HELD.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_leave_to_parent)


@dataclass
class _Watch:
    """How long a process that only its beat shows has been seen without another beat."""

    holder: Holder
    since: float

    @property
    def is_over(self) -> bool:
        """Whether it counts as dead: four beats late by both clocks, or a beat and a half by ours where by
        the clocks it has been so for long."""
        late = time.time() - self.holder.beat
        most, least = 4 * BEAT_SECONDS, 1.5 * BEAT_SECONDS
        return time.monotonic() - self.since >= min(most, max(least, most - late))


_WATCHES: dict[Path, _Watch] = {}
_SAID: list[Path] = []


def take(path: Path) -> Lock | Holder:
    """Take a lock if that is possible now; else who has it.

    Of another host that has it without flock, this may say so for a minute after its death.
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
            "the file system of %s knows no locks: processes of other hosts show there only by their beat, "
            "every %g s",
            path.parent,
            BEAT_SECONDS,
        )
    _WATCHES.pop(path, None)
    lock = Lock(path, descriptor)
    return lock.begin() or lock


def _is_dead(path: Path, holder: Holder) -> bool:
    """Whether a holder has not shown for long enough, in this and earlier looks of this process."""
    watch = _WATCHES.get(path)
    if watch is None or watch.holder != holder:
        _WATCHES[path] = watch = _Watch(holder, time.monotonic())
    return watch.is_over


def wait_for(path: Path) -> Lock | Holder:
    """Take a lock, from a process that is ending too; else who has it, and is alive."""
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
    """Who has a lock, by what is to be seen now; None where nobody has."""
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
    """Who keeps a lock from being taken, and whether that is certain, or only so if it is alive elsewhere.

    Args:
        locked: what `_flock` says.
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
    """Whether a process of this host is there, and is not a later one of the same number."""
    import psutil  # os.kill(pid, 0) would stop a process on Windows

    return psutil.pid_exists(holder.pid) and _ticks(holder.pid) == holder.ticks


def _ticks(pid: int) -> int:
    """When a process of this host began, in ticks since its boot; 0 where that is not to be had."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    except OSError:  # no Linux, or it has ended
        return 0


def _read(path: Path) -> Holder | None:
    """Who has signed a lock file; None where nobody has, or who let go. Opened anew, as over a network a file
    that is open may be as it was."""
    for _ in range(5):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, PermissionError):  # SMB lets nobody else read what is locked
            return None
        if not text.strip():
            return None
        with suppress(ValueError, TypeError):
            return Holder(**json.loads(text))
        time.sleep(0.01)  # it is being written
    return None


def _flock(descriptor: int, how: int) -> bool | None:
    """Whether a file could be locked; None where its file system knows no locks."""
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
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _is_local(place: os.stat_result) -> bool:
    """Whether a folder lies on a file system that only this host can have, as far as the system tells."""
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
"""Descriptors of what this process reads, until it ends."""


def read_on(file: Path) -> bool:
    """Have a file's folder stay until this process ends, see `unread`; False where it is being deleted.

    Windows itself keeps files that are open from being deleted.
    """
    if sys.platform == "win32":
        return file.parent.is_dir()
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:  # whoever reads it says what is wrong
        return file.parent.is_dir()
    found = os.fstat(descriptor)
    key = found.st_dev, found.st_ino
    if key in _READ or _flock(descriptor, LOCK_SH) is False or not _is_at(descriptor, file):
        os.close(descriptor)
        return key in _READ
    try:
        file.read_bytes()
    except PermissionError:  # SMB lets nobody read what is locked, not even ourselves
        os.close(descriptor)
        return True
    _READ[key] = descriptor
    return True


@contextmanager
def unread(file: Path) -> Iterator[bool]:
    """Keep readers away from a file's folder, to delete it; False where other processes read it, or have not
    ended. What this one has read, as a run does that is resumed, it has done with."""
    if sys.platform == "win32":
        yield True
        return
    try:
        descriptor = os.open(file, os.O_RDWR)
    except OSError:
        yield True  # it is not whole, and nobody's
        return
    found = os.fstat(descriptor)
    if (own := _READ.pop((found.st_dev, found.st_ino), None)) is not None:
        os.close(own)
    try:
        yield _flock(descriptor, LOCK_EX) is not False
    finally:
        os.close(descriptor)
