"""The files of a folder, what their names give, and what is left out, with reasons.

Folders are searched recursively. Links are followed, each folder and file once. Everything that is left out
is reported by `Folder.remarks`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path, PurePath

from mrt5cli.data.formats import suffix_of, without_suffix
from mrt5cli.data.splits import ParsedName, missing_pieces, read_name, with_twins
from mrt5cli.errors import UserError
from mrt5cli.text import counted, listed

# Files that accompany data.
_ABOUT = re.compile(
    r"(read[-_ ]?me|licen[cs]e|copying|copyright|notice|citation|changelog|requirements)([-_. ].*)?\.txt"
    r"|(.*[-_.])?(config|results|state|info|card|metadata|manifest|index|stats|args)s?\.json",
    re.IGNORECASE,
)
# Files and folders that other programs leave behind.
_DEBRIS = ("__MACOSX", "__pycache__", "Thumbs.db", "desktop.ini")


class Folder:
    """The files below a folder.

    Attributes:
        files: the files of the wanted formats by their relative paths, sorted.
        left_out: the names of what is left out, by reason.

    Raises:
        UserError: the folder itself cannot be read.
    """

    def __init__(self, path: Path, formats: Collection[str]) -> None:
        self.path = path
        self.left_out: dict[str, list[str]] = {}
        self._formats = formats
        self._seen = {os.path.realpath(path)}
        self._missing: list[str] = []
        files: dict[str, Path] = {}
        for here, folders, names in os.walk(path, onerror=self._closed, followlinks=True):
            # Links last, so that their targets are found by their own names.
            links_last = sorted(folders, key=lambda name: (os.path.islink(os.path.join(here, name)), name))
            folders[:] = [name for name in links_last if self._wanted(Path(here, name))]
            found = [Path(here, name) for name in sorted(names) if self._wanted(Path(here, name))]
            files |= {str(file.relative_to(path)): file for file in found}
        self.files = dict(sorted(files.items()))

    def read_names(
        self, languages: Sequence[str], own_name: Callable[[str], str | None] = str
    ) -> dict[str, ParsedName]:
        """The parsed paths of the files.

        Args:
            own_name: removes the task's name from a path; None if the file belongs to another task.

        Raises:
            UserError: two sets of numbered pieces share one name.
        """
        parsed: dict[str, ParsedName] = {}
        for file in self.files:
            name = own_name(without_suffix(file))
            if name is None:
                self.leave_out("of another task", file)
            else:
                parsed[file] = read_name(PurePath(name), languages)
        self._missing = [f"{self.path}: {sentence}" for sentence in missing_pieces(parsed)]
        return with_twins(parsed, languages)

    def leave_out(self, reason: str, *names: str) -> None:
        """Record that files or folders are not used."""
        if names:
            self.left_out.setdefault(reason, []).extend(names)

    def kinds(self) -> str:
        """What was found instead of data: "3 .pdf, 1 notes"."""
        names = [name for some in self.left_out.values() for name in some]
        kinds = Counter(Path(name).suffix or Path(name).name for name in names)
        return listed([f"{count} {kind}" for kind, count in kinds.most_common()], 5) or "nothing"

    def remarks(self) -> list[str]:
        """What is missing and what is left out, one sentence each."""
        if not self.left_out:
            return self._missing
        parts = "; ".join(f"{listed(names, 3)} ({reason})" for reason, names in self.left_out.items())
        count = sum(map(len, self.left_out.values()))
        return [*self._missing, f"{counted(count, 'entry', 'entries')} of {self.path} left out: {parts}"]

    def _closed(self, error: OSError) -> None:
        """Record a folder that cannot be read; raise if it is the top one."""
        reason = (error.strerror or type(error).__name__).lower()
        if Path(error.filename) == self.path:
            raise UserError(f"{self.path} cannot be read: {reason}", "check its permissions") from error
        self.leave_out(reason, f"{Path(error.filename).relative_to(self.path)}{os.sep}")

    def _wanted(self, path: Path) -> bool:
        reason = self._reason_against(path)
        if reason:
            self.leave_out(reason, f"{path.relative_to(self.path)}{os.sep if path.is_dir() else ''}")
        return reason is None

    def _reason_against(self, path: Path) -> str | None:
        real = os.path.realpath(path)
        if path.name.startswith(".") or path.name in _DEBRIS:
            return "hidden"
        if not os.path.exists(real):
            return "a dangling link"
        if real in self._seen:
            return "a link to what is already included"
        self._seen.add(real)
        if path.is_dir():
            return None
        if not path.is_file():
            return "a pipe or a device"
        if suffix_of(path.name) not in self._formats:
            return "of an unsupported format"
        return "about the data" if _ABOUT.fullmatch(path.name) else None
