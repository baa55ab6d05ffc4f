"""The files of a folder, what their names say, and what is left out of it, with the reason.

Folders are searched to the bottom. Links are followed, each folder and file once. Whoever uses the files asks
for `Folder.remarks`, so that nothing is left out without a word.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path, PurePath

from mrt5cli.data.formats import format_of
from mrt5cli.data.splits import ParsedName, check_pieces, missing_pieces, read_name, with_twins
from mrt5cli.errors import UserError
from mrt5cli.text import counted, listed

OTHER_FORMAT = "of a format that is not read"
HIDDEN = "hidden"
ABOUT = "about the data"
NOWHERE = "a link to nothing"
TWICE = "a link to what is there already"
# Files that come with data and are none.
_ABOUT = {
    ".txt": re.compile(
        r"(?i:read[-_ ]?me|licen[cs]es?|copying|copyright|notice|citation|changelog|changes|authors|version"
        r"|requirements)|(?i:read[-_ ]?me)[-_. ].*|(LICEN[CS]E|COPYING|COPYRIGHT|NOTICE|CHANGES)[-_. ].*"
    ),
    ".json": re.compile(
        r"(.*[-_.])?(configs?|results?|state|infos?|card|metadata|manifest|index|stats|schema|args|dict|package)",
        re.IGNORECASE,
    ),
}
# What other systems leave behind.
_DEBRIS = ("__MACOSX", "__pycache__", "Thumbs.db", "desktop.ini")


class Folder:
    """What is below a folder.

    Args:
        path: of the folder.
        formats: suffixes of the files that are wanted, whatever they are packed in.

    Attributes:
        files: that are wanted, with their paths from the folder on, in order of these.
        left_out: names of what is left out, by the reason.
        missing: a sentence for each set of which not all pieces are there.

    Raises:
        UserError: the folder itself cannot be read.
    """

    def __init__(self, path: Path, formats: Collection[str]) -> None:
        self.path = path
        self.files: dict[str, Path] = {}
        self.left_out: dict[str, list[str]] = {}
        self.missing: list[str] = []
        self._formats = formats
        self._seen: set[str] = set()
        try:
            os.listdir(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {_reason(error)}") from error
        links = self._walk(path)
        while links:
            link = links.pop(0)
            if not link.exists():
                self.leave_out(NOWHERE, self._name(link))
            elif os.path.realpath(link) in self._seen:
                self.leave_out(TWICE, self._name(link))
            elif link.is_dir():
                links += self._walk(link)
            else:
                self._take(link)
        self.files = dict(sorted(self.files.items()))

    def read_names(
        self, languages: Sequence[str], own_name: Callable[[str], str | None] = str
    ) -> dict[str, ParsedName]:
        """What the paths of the files say.

        Args:
            languages: that are asked for.
            own_name: what a path says, without what is the task's own in it; None where the file is none of
                the task's.

        Raises:
            UserError: there are pieces of two sets under one name.
        """
        said: dict[str, ParsedName] = {}
        for file in self.files:
            name = own_name(without_suffix(file))
            if name is None:
                self.leave_out("of another task", file)
            else:
                said[file] = read_name(PurePath(name), languages)
        said = with_twins(said, languages)
        check_pieces(said, str(self.path))
        self.missing = missing_pieces(said)
        return said

    def leave_out(self, reason: str, *names: str) -> None:
        """Note that files or folders are not used."""
        if names:
            self.left_out.setdefault(reason, []).extend(names)

    def kinds(self) -> str:
        """What there is instead of what was looked for: "3 .pdf, notes"."""
        names = [name for some in self.left_out.values() for name in some]
        kinds = Counter(Path(name).suffix or Path(name).name for name in names)
        return listed([f"{count} {kind}" for kind, count in kinds.most_common()], 5) or "nothing"

    def remarks(self) -> list[str]:
        """What is missing, and what is left out, in sentences."""
        missing = [f"{self.path}: {sentence}" for sentence in self.missing]
        if not self.left_out:
            return missing
        parts = [f"{listed(names, 3)} ({reason})" for reason, names in self.left_out.items()]
        count = sum(map(len, self.left_out.values()))
        return [*missing, f"{counted(count, 'entry', 'entries')} of {self.path} left out: {'; '.join(parts)}"]

    def _walk(self, top: Path) -> list[Path]:
        """Take the files below a folder. Links wait, so that what they lead to is found by its own name."""
        links: list[Path] = []

        def cannot(error: OSError) -> None:
            self.leave_out(_reason(error), self._name(Path(error.filename)) + os.sep)

        for folder, folders, files in os.walk(top, onerror=cannot):
            here = Path(folder)
            if (real := os.path.realpath(folder)) in self._seen:
                self.leave_out(TWICE, self._name(here) + os.sep)
                folders.clear()
                continue
            self._seen.add(real)
            for name in sorted(folders):
                if self._unwanted(here / name):
                    folders.remove(name)
                elif (here / name).is_symlink():
                    folders.remove(name)
                    links.append(here / name)
            folders.sort()
            for name in sorted(files):
                if not self._unwanted(here / name):
                    if (here / name).is_symlink():
                        links.append(here / name)
                    else:
                        self._take(here / name)
        return links

    def _unwanted(self, path: Path) -> bool:
        if unwanted := path.name.startswith(".") or path.name in _DEBRIS:
            self.leave_out(HIDDEN, self._name(path) + (os.sep if path.is_dir() else ""))
        return unwanted

    def _take(self, file: Path) -> None:
        name, real = self._name(file), os.path.realpath(file)
        found = format_of(file.name)
        if real in self._seen:
            self.leave_out(TWICE, name)
        elif found is None or found.suffix not in self._formats:
            self.leave_out(OTHER_FORMAT, name)
        elif not file.is_file():
            self.leave_out("no ordinary file", name)
        elif (about := _ABOUT.get(found.suffix)) and about.fullmatch(without_suffix(file.name)):
            self.leave_out(ABOUT, name)
        else:
            self.files[name] = file
        self._seen.add(real)

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.path))


def without_suffix(name: str) -> str:
    """The path of a file without the suffix of its format and of what it is packed in."""
    found = format_of(name)
    return name if found is None else name[: -len(found.suffix + found.packing)]


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
