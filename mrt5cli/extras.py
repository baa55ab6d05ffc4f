"""Optional dependencies, listed by package name in hints because mrt5cli itself is not on an index."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

_OF_EXTRA = re.compile(r"""(.+?) *; *extra *== *["']([\w-]+)["']""")
_OURS = re.compile(r"mrt5cli\[(.+)\]")


def how_to_install(*names: str) -> str:
    """The command that installs the packages of some extras, such as `pip install 'matplotlib>=3.8'`."""
    return shlex.join(["pip", "install", *(package for name in names for package in packages(name))])


def packages(extra: str) -> list[str]:
    """The requirements of an extra, in pip's syntax.

    Raises:
        KeyError: the extra does not exist.
    """
    found: list[str] = []
    for package in extras()[extra]:
        ours = _OURS.fullmatch(package)
        found += [one for name in ours[1].split(",") for one in packages(name)] if ours else [package]
    return found


def extras() -> dict[str, list[str]]:
    """The requirements of every extra.

    In a checkout they come from pyproject.toml, because the metadata of an editable install may be outdated.
    """
    import tomllib
    from importlib import metadata  # slow to import, like tomllib, and not needed for --help

    checkout = Path(__file__).parents[1] / "pyproject.toml"
    if checkout.is_file():
        project = tomllib.loads(checkout.read_text(encoding="utf-8"))["project"]
        if project["name"] == "mrt5cli":
            return project["optional-dependencies"]
    found: dict[str, list[str]] = {}
    for requirement in metadata.requires("mrt5cli") or ():
        if of_extra := _OF_EXTRA.fullmatch(requirement):
            found.setdefault(of_extra[2], []).append(of_extra[1])
    return found
