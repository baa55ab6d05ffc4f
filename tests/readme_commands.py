"""The commands that our documents show: read from the Markdown, and run at toy scale in a separate folder.

`shown` finds the shell lines of a document's code blocks, and `mentioned` the commands in its prose. A
`Shell` runs such lines in bash, where `mrt5`, `make`, `pip`, `python` and `torchrun` are stand-ins. `mrt5`
sends its words to a server that has imported everything once, shrinks what would take hours
(`at_toy_scale`), and forks.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAMS = ("mrt5", "make", "pip", "python", "torchrun")
_BEGINS = re.compile(rf"(?:echo .*\| *|\. |cat .*\| *|[A-Z_]+=\S+ +)?(?:{'|'.join(PROGRAMS)}) ")
_FENCE = re.compile(r"```(\w*)")
_COMMENT = re.compile(r"""^((?:'[^']*'|"[^"]*"|[^'"#]|(?<=\S)#)*?)(?:(?:^|(?<=\s))#.*)?$""", re.DOTALL)
_MENTION = re.compile(r"(?<!`)`(?P<text>(?:mrt5|make)\s[^`]+)`(?!`)")
_OPERATORS = ("&&", "||", "|", ";", "&")


@dataclass(frozen=True)
class Shown:
    """A shell line of a document, without its comment and with its continuation lines.

    Attributes:
        readme: relative to the repository.
        line: the number of its first line, from 1.
    """

    readme: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.readme}:{self.line}: {self.text}"

    def commands(self) -> Iterator[list[str]]:
        """The words of its simple commands, without redirections; a `$(...)` inside is one more command."""
        for inner in re.findall(r"\$\(([^)]*)\)", self.text):
            yield from replace(self, text=inner).commands()
        outer = re.sub(r"\$\([^)]*\)", "RUN", self.text)
        lexer = shlex.shlex(outer, posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, ""
        words: list[str] = []
        tokens = iter(lexer)
        for token in tokens:
            if token in _OPERATORS:
                yield words
                words = []
            elif token and set(token) <= set("<>"):
                next(tokens)
            else:
                words.append(token)
        yield words


def without_comment(line: str) -> str:
    found = _COMMENT.match(line)
    assert found is not None, line
    return found.group(1).rstrip()


def shown(readme: Path) -> list[Shown]:
    """The shell lines in a document's code blocks, indented or fenced, from top to bottom."""
    name = str(readme.relative_to(ROOT))
    found: list[Shown] = []
    fence: str | None = None
    continues = False
    for number, line in enumerate(readme.read_text(encoding="utf-8").splitlines(), 1):
        mark = _FENCE.match(line.strip())
        if mark is not None:
            fence = mark.group(1) if fence is None else None
            continue
        if not (
            line.startswith("    ") if fence is None else fence in ("", "sh", "bash", "shell", "console")
        ):
            continues = False
            continue
        text = line.strip().removeprefix("$ ")
        if continues:
            last = found.pop()
            text = f"{last.text.removesuffix(chr(92)).rstrip()} {text}"
            number = last.line
        elif not _BEGINS.match(f"{text} "):
            continue
        text = without_comment(text)
        found.append(Shown(name, number, text))
        continues = text.endswith("\\")
    return found


def mentioned(readme: Path) -> list[Shown]:
    """The commands in a document's prose, `like this`; what follows a `|` is another form of the same."""
    text = readme.read_text(encoding="utf-8")
    prose = re.sub(
        r"^```.*?^```", lambda block: "\n" * block.group().count("\n"), text, flags=re.DOTALL | re.MULTILINE
    )
    return [
        Shown(
            str(readme.relative_to(ROOT)),
            prose[: found.start()].count("\n") + 1,
            re.split(r" \|+ | && ", " ".join(found["text"].replace(r"\|", "|").split()))[0],
        )
        for found in _MENTION.finditer(prose)
    ]


# --- running them -------------------------------------------------------------------------------------------

FEW_STEPS = (
    *("--set", "training.max_steps=6", "--set", "training.warmup_steps=2"),
    *("--set", "loss.regularizer_delay=0"),
)
BRIEFLY = ("--size", "tiny", "--batch-size", "2", "--length", "64", "--target-length", "8", "--rounds", "1")


def at_toy_scale(words: Sequence[str]) -> list[str]:
    """The words of an `mrt5` command, with options that let it end within seconds on a CPU.

    Training takes six steps, or `--smoke` if its data or its start is on the Hub, whose stand-in has rows for
    few tasks only. A suite is planned and not run, and benchmarks use the tiny model.
    """
    words = list(words)
    command = words[0] if words else ""
    if {"--help", "--dry-run", "--smoke"} & {*words}:
        return words
    if command == "reproduce":
        return words if "--report-only" in words else [*words, "--dry-run"]
    if command == "bench":
        words = [word.replace("tf32,", "") for word in words]  # products of a GPU
        return [*words, *BRIEFLY[2 if any(word.startswith("runs/") for word in words) else 0 :]]
    if command in ("pretrain", "finetune"):
        if "--slurm" in words:
            return [*words, "--dry-run"]
        if "--continue-for" in words:
            words[words.index("--continue-for") + 1] = "2"
            return words
        return [*words, *("--smoke",)] if _is_online(words) else [*words, *FEW_STEPS]
    return words


def _is_online(words: Sequence[str]) -> bool:
    from mrt5cli import recipe as recipes
    from mrt5cli.errors import UserError

    try:
        asked = recipes.load(words[1])
    except UserError:
        return False  # the command itself says what is wrong
    document = asked.model_dump()
    sources = [document["task"].get("source"), *(document["task"].get("sources") or [])]
    return any(source and source["kind"] == "hub" for source in sources) or "--from" in words


class Shell:
    """Runs lines of documents in a folder; ends its server with `close`."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        stand_ins = folder / ".bin"
        stand_ins.mkdir(parents=True)
        self._address = stand_ins / "socket"
        for program in PROGRAMS:
            file = stand_ins / program
            file.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {__file__} client {program} "$@"\n')
            file.chmod(0o755)
        self.environment = {
            **environment,
            "PATH": f"{stand_ins}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "MRT5_TEST_SERVER": str(self._address),
        }
        self._server = subprocess.Popen(
            [sys.executable, __file__, "server"], cwd=folder, env=self.environment, stdin=subprocess.DEVNULL
        )
        while not self._address.exists():
            assert self._server.poll() is None, "the server of the commands ended"
            time.sleep(0.05)

    def run(self, text: str) -> subprocess.CompletedProcess[str]:
        """One line, in bash; a pipe fails with its first command that fails."""
        return subprocess.run(
            ["bash", "-c", f"set -e -o pipefail\n{text}"],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def close(self) -> None:
        self._server.kill()
        self._server.wait()


def _client(program: str, words: list[str]) -> int:
    """Ask the server to run a command on this process's stdin, stdout and stderr; returns its exit code."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(os.environ["MRT5_TEST_SERVER"])
        message = json.dumps(
            {"program": program, "words": words, "cwd": os.getcwd(), "environment": dict(os.environ)}
        )
        socket.send_fds(line, [len(message.encode()).to_bytes(4, "big")], [0, 1, 2])
        line.sendall(message.encode())
        answer = line.recv(1)
    return answer[0] if answer else 1


def _serve() -> None:
    import importlib
    import signal

    importlib.import_module("mrt5cli.suite.preload")
    importlib.import_module("mrt5cli.cli")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(os.environ["MRT5_TEST_SERVER"])
        door.listen()
        while True:
            line, _ = door.accept()
            if os.fork() == 0:
                door.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                code = 1
                try:
                    code = _answer(line)
                finally:
                    line.sendall(bytes([code & 255]))
                    os._exit(0)
            line.close()


def _answer(line: socket.socket) -> int:
    header, descriptors, _, _ = socket.recv_fds(line, 4, 3)
    size = int.from_bytes(header, "big")
    message = b""
    while len(message) < size:
        message += line.recv(size - len(message))
    asked = json.loads(message)
    for ours, theirs in zip(range(3), descriptors, strict=True):
        os.dup2(theirs, ours)
    os.chdir(asked["cwd"])
    os.environ.update(asked["environment"])
    try:
        STAND_INS[asked["program"]](asked["words"])
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _mrt5(words: list[str]) -> None:
    from mrt5cli.__main__ import main

    sys.argv = ["mrt5", *at_toy_scale(words)]
    main()


def _make(words: list[str]) -> None:
    """What make would do: that the target exists and its variables are known is all there is to see."""
    sys.exit(subprocess.call(["make", "-n", "-C", str(ROOT), *words], env={**os.environ, "PATH": os.defpath}))


def _pip(words: list[str]) -> None:
    """Requirements are well-formed, and extras of this package exist; nothing is installed."""
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert words[0] == "install", words
    for word in (word for word in words[1:] if not word.startswith("-")):
        here = re.fullmatch(r"\.(?:\[(.*)\])?|.*\.whl", word)
        extras = here.group(1) if here else ""
        if here is None:
            asked = Requirement(word)
            extras = ",".join(asked.extras) if asked.name == project["name"] else ""
        assert {*filter(None, (extras or "").split(","))} <= {*project["optional-dependencies"]}, word


def _python(words: list[str]) -> None:
    """Another script of ours exists, and knows the options; `-c` and `-m mrt5cli` run."""
    if words[:2] == ["-m", "mrt5cli"]:
        return _mrt5(words[2:])
    if words[0] == "-c":
        sys.exit(subprocess.call([sys.executable, *words]))
    script = "".join(
        file.read_text(encoding="utf-8") for file in [ROOT / words[0], *(ROOT / words[0]).parent.glob("*.py")]
    )
    for option in (word for word in words[1:] if word.startswith("--")):
        assert option in script, f"{words[0]} has no {option}"


def _torchrun(words: list[str]) -> None:
    """The command that each process would run, planned in one."""
    _mrt5([*words[words.index("mrt5cli") + 1 :], "--dry-run"])


STAND_INS = {"mrt5": _mrt5, "make": _make, "pip": _pip, "python": _python, "torchrun": _torchrun}

if __name__ == "__main__":
    if sys.argv[1] == "client":
        sys.exit(_client(sys.argv[2], sys.argv[3:]))
    _serve()
