"""Files as no writer leaves them: what is drawn to break them, and what may come of reading one.

Reading a broken file ends well or in one sentence that names it, within seconds and bounded memory, and
writes nothing.
"""

from __future__ import annotations

import bz2
import copy
import gzip
import io
import json
import lzma
import os
import random
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from mrt5cli.errors import UserError

SECONDS, MEGABYTES = 10, 1500
"""What reading one file may take, beside what the process has."""
ROWS = [
    {"text": f'row {n}, "naïve" 日本', "n": n, "language": "en", "of": {"a": [n, None]}} for n in range(30)
]


def _parquet() -> bytes:
    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(ROWS), out, row_group_size=8)
    return out.getvalue()


def _table(mark: str) -> bytes:
    return "\n".join(
        f"{mark.join(('n', 'text'))}" if n < 0 else f"{n}{mark}row {n}" for n in range(-1, 30)
    ).encode()


DATA = {
    "a.txt": "A paragraph.\nOf two lines.\n\n日本 naïve\n".encode() * 20,
    "a.jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
    "a.json": json.dumps(ROWS).encode(),
    "a.csv": _table(",") + b'\n31,"a, ""b""\nc"\n',
    "a.tsv": _table("\t") + b'\n31\t"a ""b"""\n',
    "a.parquet": _parquet(),
    "b.txt": "mark\n\nand text\n".encode("utf-16"),
    "b.csv": _table(",").decode().encode("utf-32"),
}
PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}
"""What ends of names say that files are packed in."""
PIECES = [
    *(b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1b[31m", "\u202e".encode(), b"\x07"),
    *(
        b"7" * 5000,
        b"[" * 3000,
        b'{"a":' * 3000,
        b'"',
        b"'",
        b"\n",
        b"\r",
        b"\t",
        b",",
        b": ",
        b"- ",
        b"{",
        b"]",
    ),
    *(b"&a *a", b"!!python/name:os.system", b"\\ud800", b"\\x1b", b"\x1f\x8b", b"../../x", b"1e999", b"NaN"),
    *(b"null", b"true", b"-1", b" " * 70_000, b"x" * 70_000, b"\n" * 5000, b"PK\x03\x04", b"\xf0\x9f\x98"),
]
VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        5,
        10**9,
        10**30,
        10**400,
        -(10**400),
        1.5,
        -1e308,
        float("inf"),
        float("nan"),
    ),
    *(
        "",
        "x",
        "\ud800",
        "a\nb\x1b[31m\u202e",
        "../../x",
        "/dev/zero",
        "a\0b",
        "7" * 4000,
        "step-" + "9" * 5000,
    ),
    *([], [[]], [1, 2], [[[["a"]]]], {}, {"a": 1}, ["x"] * 1000, {"kind": "x"}),
]


def broken(content: bytes, chance: random.Random) -> bytes:
    """A file's content with up to three changes."""
    for _ in range(chance.randint(1, 3)):
        start = chance.randrange(len(content) + 1)
        stop = min(len(content), start + chance.choice((0, 1, 1, 4, 40, 4000)))
        piece = chance.choice([chance.choice(PIECES), chance.randbytes(3), content[start:stop] * 3, b""])
        content = content[:start] + piece + content[stop:]
        if chance.random() < 0.1:
            content = content[:start]
    return content


def broken_tree(tree: Any, chance: random.Random) -> Any:
    """A JSON value with up to two of the values in it exchanged for odd ones, left out or added."""
    tree = copy.deepcopy(tree)
    for _ in range(chance.randint(1, 2)):
        odd = copy.deepcopy(chance.choice(VALUES))
        places = list(_places(tree))
        if not places:
            return odd
        within, key = chance.choice(places)
        if chance.random() < 0.1:
            del within[key]
        elif chance.random() < 0.1 and isinstance(within, dict):
            within[chance.choice(["", "x", "\ud800", "__class__", "a\x1bb"])] = odd
        else:
            within[key] = odd
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from _places(tree[key])


def read(call: Callable[[], object], *names: str) -> UserError | None:
    """What a reader says of a file; None where it reads it.

    Args:
        names: one of them is in what it says.
    """
    try:
        with _bounded():
            call()
    except UserError as error:
        said = error.message
        assert any(name in said for name in names), said
        assert len(said) < 20_000 and all(c.isprintable() or c == "\n" or c > "\x9f" for c in said), said
        return error
    return None


_written: list[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _written is not None and event == "open":
        path, _, flags = arguments
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _written.append(str(path))


sys.addaudithook(_watch)


@contextmanager
def _bounded() -> Iterator[None]:
    global _written

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"not read within {SECONDS} seconds")

    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    before, limits = signal.signal(signal.SIGALRM, late), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + MEGABYTES * 2**20, limits[1]))
    signal.alarm(SECONDS)
    _written = written = []
    try:
        yield
    finally:
        _written = None
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert not written, written
