"""Files that should be JSON and are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrt5cli.errors import UserError
from mrt5cli.json_files import read_object

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (POINTER, "meta.json cannot be read: it is not JSON but a Git LFS pointer"),
        ("<!DOCTYPE html><html>", "meta.json cannot be read: it is not JSON but a web page"),
        ("[" * 100_000, "meta.json cannot be read: it is not JSON: it is nested too deeply"),
        (
            '{"seed": ' + "9" * 5000 + "}",
            "it is not JSON: it contains a whole number of more than 4,300 digits",
        ),
        ("[1]", "meta.json is not a JSON object"),
    ],
)
def test_what_is_no_object_is_called_what_it_is(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "meta.json").write_text(content)
    with pytest.raises(UserError) as caught:
        read_object(tmp_path / "meta.json")
    assert told in caught.value.message
