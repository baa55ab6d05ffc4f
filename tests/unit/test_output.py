"""What is printed arrives whatever the streams are: other encodings, readers that leave, full disks, none."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mrt5cli.output import Messages, Results, print_json

DOCUMENT = {"text": "Größe 日本 😀", "file": "caf\udce9", "plain": [1, None]}


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-16", "utf-8", "UTF8"])
def test_json_is_json_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_ = io.BytesIO()
    stream = io.TextIOWrapper(bytes_, encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    print_json(DOCUMENT)
    stream.flush()
    assert json.loads(bytes_.getvalue().decode(encoding)) == DOCUMENT


def test_a_reader_of_messages_that_leaves_takes_nothing_along() -> None:
    reading, writing = os.pipe()
    with open(writing, "w", buffering=1, encoding="ascii") as stream:
        messages = Messages(stream)
        assert messages.write("read ö\n") == 7
        assert os.read(reading, 100) == b"read \\xf6\n"
        os.close(reading)
        for _ in range(3):
            print("x" * 10_000, file=messages, flush=True)  # more than any buffer holds


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that Linux has")
def test_a_full_disk_below_stdout_is_named() -> None:
    with open("/dev/full", "w", encoding="utf-8") as stream:
        results = Results(stream)
        results.write("a line\n")
        with pytest.raises(OSError, match="No space left on device: 'stdout'"):
            results.flush()


def test_closed_streams_and_an_ascii_stdout(tmp_path: Path) -> None:
    """Commands in processes of their own, as daemons and bare locales start them."""
    mine = tmp_path / "größe.yaml"
    mine.write_text("extends: quickstart\ndescription: für Wörter 日本 😀\n", encoding="utf-8")
    show = f'"{sys.executable}" -m mrt5cli recipe show "{mine}"'
    for ends in ("<&- >&- 2>&-", ">&-", "2>&-"):
        done = subprocess.run(["sh", "-c", f"{show} {ends}"], capture_output=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, b""), ends

    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    script = f'{show}; "{sys.executable}" -m mrt5cli recipe copy quickstart /dev/stdout | tail -n +1'
    done = subprocess.run(["sh", "-c", script], capture_output=True, env=ascii_only, timeout=120)
    assert done.stdout.isascii() and b"# The quickstart" in done.stdout and b"rror" not in done.stderr
