"""What a manifest says of a folder, and each way in which the folder may be another."""

from __future__ import annotations

import errno
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mrt5cli import manifest
from mrt5cli.errors import CheckpointError
from mrt5cli.models.weights import seal

FILES = ("config.json", "model.safetensors", "deep/vocabulary.txt", "empty.txt")


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / "step-00000008"
    (folder / "deep").mkdir(parents=True)
    (folder / "config.json").write_text('{"d_model": 16}')
    (folder / "deep" / "vocabulary.txt").write_text("a b c")
    (folder / "empty.txt").touch()
    save_file({"weight": torch.ones(2, 3)}, folder / "model.safetensors")
    seal(folder, step=8, metrics=b'{"step": 8}\n')
    return folder


def edit(folder: Path, **fields: object) -> None:
    path = folder / manifest.NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_it_lists_every_file_and_holds(sealed: Path):
    held = manifest.check(sealed)
    assert held is not None
    assert sorted(held.files) == sorted(FILES)
    assert (held.step, held.finite, held.metrics["size"]) == (8, True, 12)


def test_a_folder_without_one_is_taken_as_it_is(sealed: Path):
    (sealed / manifest.NAME).unlink()
    (sealed / "config.json").unlink()
    assert manifest.check(sealed) is None


@pytest.mark.parametrize("name", [*FILES[:3], manifest.NAME])
def test_no_bit_flips_unseen(sealed: Path, name: str, chance: random.Random):
    path = sealed / name
    content = path.read_bytes()
    for _ in range(100):
        place = chance.randrange(len(content))
        flipped = content[place] ^ 1 << chance.randrange(8)
        path.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
        assert name in (manifest.fault(sealed) or ""), f"byte {place} is {flipped}"
    path.write_bytes(content)
    assert manifest.fault(sealed) is None


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda at: (at / "config.json").unlink(), "it has no config.json"),
    "longer": (lambda at: (at / "empty.txt").write_text("more"), "empty.txt has 4 bytes, but 0 were written"),
    "shorter": (lambda at: (at / "config.json").write_text(""), "config.json has 0 bytes, but 15 were"),
    "edited": (
        lambda at: (at / "config.json").write_text('{"d_model": 17}'),
        "config.json differs from what was",
    ),
    "renamed": (
        lambda at: at.rename(at.with_name("step-00000009")),
        "manifest.json belongs to step 8",
    ),
    "no JSON": (lambda at: (at / manifest.NAME).write_text("{"), "manifest.json is damaged or from another"),
    "a list": (lambda at: (at / manifest.NAME).write_text("[1]"), "manifest.json is damaged or from another"),
    "changed": (lambda at: edit(at, step=9), "manifest.json is damaged or from another version"),
    "another model": (
        lambda at: (at / "generation_config.json").write_text('{"num_beams": 4}'),
        "generation_config.json was added and would be read",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_another_is_named(sealed: Path, change: str):
    spoil, words = CHANGES[change]
    spoil(sealed)
    (folder,) = sealed.parent.iterdir()
    with pytest.raises(CheckpointError, match=re.escape(words)) as raised:
        manifest.check(folder)
    assert raised.value.message.startswith(f"{folder} is not a complete checkpoint: ")
    hint = f"restore the file from a copy; if the change was intended, delete {folder / manifest.NAME}"
    assert raised.value.hint == hint


def test_notes_of_ones_own_may_lie_beside(sealed: Path):
    for name in ("README.md", "notes.json", "model_card.md", ".DS_Store"):
        (sealed / name).write_text("mine")
    assert manifest.check(sealed) is not None


def test_only_what_is_asked_for_is_looked_at(sealed: Path):
    (sealed / "deep" / "vocabulary.txt").write_text("x")
    assert manifest.fault(sealed, manifest.of_the_model) is None
    (sealed / "config.json").write_text('{"d_model": 17}')
    assert manifest.fault(sealed, manifest.of_the_model, content=False) is None
    assert manifest.fault(sealed, "model.safetensors".__eq__) is None
    assert manifest.fault(sealed, manifest.of_the_model) is not None


def test_the_hint_names_an_earlier_checkpoint(sealed: Path):
    for step in (4, 12):
        (sealed.parent / f"step-{step:08d}").mkdir()
    assert manifest.what_to_do(sealed).startswith(f"use {sealed.parent / 'step-00000004'}; if")


def test_what_a_disk_cannot_read_is_no_signal(sealed: Path, monkeypatch: pytest.MonkeyPatch):
    def failing(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(manifest, "_hash", failing)
    assert manifest.fault(sealed, "config.json".__eq__) == "config.json cannot be read: Input/output error"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_it_says_whether_weights_are_finite(tmp_path: Path, value: float):
    save_file({"weight": torch.tensor([1.0, value])}, tmp_path / "model.safetensors")
    seal(tmp_path, step=0, metrics=b"")
    held = manifest.read(tmp_path)
    assert held is not None and not held.finite
