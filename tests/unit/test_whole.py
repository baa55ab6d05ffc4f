"""A checkpoint with a missing or damaged part is refused before a run resumes."""

from __future__ import annotations

import json
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_trainer import train
from transformers.trainer_pt_utils import safe_globals

from mrt5cli import manifest
from mrt5cli.errors import UserError
from mrt5cli.rundir import RunDir
from mrt5cli.training.whole import check_whole

ARCHIVES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
TEXTS = ("trainer_state.json", "mrt5_state_0.json")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return train(tmp_path_factory.mktemp("unbroken"), "run")


@pytest.fixture
def copied(tmp_path: Path, unbroken: RunDir) -> RunDir:
    """A run with checkpoints of steps 8 and 12, to be damaged; of an older version, without manifests."""
    run = RunDir(Path(shutil.copytree(unbroken.path, tmp_path / "run")))
    for step in (8, 12):
        (run.checkpoint(step) / manifest.NAME).unlink()
    return run


def flip_a_byte(path: Path) -> None:
    """In the largest tensor of an archive, which torch reads as if nothing had happened."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        tensors = [record for record in archive.infolist() if "/data/" in record.filename]
    tensor = max(tensors, key=lambda record: record.file_size)
    lengths = struct.unpack_from("<HH", content, tensor.header_offset + 26)  # of the name and of the padding
    content[tensor.header_offset + 30 + sum(lengths)] ^= 0xFF
    path.write_bytes(content)
    with safe_globals():
        torch.load(path, weights_only=True)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "it has no {name}"),
    "empty": (lambda path: path.write_bytes(b""), "{name} is cut off or damaged"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "{name} is cut off or damaged"),
    "half": (
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "{name} is cut off or damaged",
    ),
    "garbage": (lambda path: path.write_bytes(bytes(range(256)) * 9), "{name} is cut off or damaged"),
    "a page": (lambda path: path.write_text("<!DOCTYPE html><html>"), "{name} is cut off or damaged"),
    "nothing in it": (
        lambda path: path.write_text("{}") if path.suffix == ".json" else torch.save({}, path),
        "is not a complete checkpoint: {name} ",
    ),
    "something else": (
        lambda path: path.write_text("[1]") if path.suffix == ".json" else torch.save([1], path),
        "is not a complete checkpoint: {name} ",
    ),
}


def test_whole_checkpoints_are_whole(unbroken: RunDir):
    for step in (8, 12):
        check_whole(unbroken.checkpoint(step))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [*ARCHIVES, *TEXTS])
def test_nothing_goes_on_from_a_checkpoint_that_is_not_whole(copied: RunDir, name: str, damage: str):
    spoil, words = DAMAGES[damage]
    spoil(copied.checkpoint(12) / name)
    with pytest.raises(UserError, match=re.escape(words.format(name=name))) as raised:
        check_whole(copied.checkpoint(12))
    assert "continues from the previous one, step-00000008: rm -r" in str(raised.value.hint)
    check_whole(copied.checkpoint(8))


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth"])
def test_a_byte_that_changed_inside_of_an_archive_is_noticed(copied: RunDir, name: str):
    flip_a_byte(copied.checkpoint(12) / name)
    with pytest.raises(
        UserError, match=rf"step-00000012 is not a complete checkpoint: {name} is cut off or damaged \("
    ):
        check_whole(copied.checkpoint(12))


@pytest.mark.parametrize("name", ["trainer_state.json", "optimizer.pt", "scheduler.pt"])
def test_a_file_of_another_step_is_noticed(copied: RunDir, name: str):
    shutil.copy(copied.checkpoint(8) / name, copied.checkpoint(12))
    with pytest.raises(UserError, match=rf"{name} is damaged \(it is from step 8"):
        check_whole(copied.checkpoint(12))


def test_an_optimizer_without_moments_is_noticed(copied: RunDir):
    path = copied.checkpoint(12) / "optimizer.pt"
    torch.save(torch.load(path, weights_only=True) | {"state": {}}, path)
    with pytest.raises(UserError, match=r"optimizer\.pt is damaged"):
        check_whole(copied.checkpoint(12))


def test_states_that_do_not_fit_are_no_bug_of_the_program(copied: RunDir, tmp_path: Path):
    path = copied.checkpoint(8) / "optimizer.pt"
    saved = torch.load(path, weights_only=True)
    saved["param_groups"][0]["params"] = saved["param_groups"][0]["params"][:3]
    torch.save(saved, path)
    state = copied.checkpoint(12) / "mrt5_state_0.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"controller": {}}))
    with pytest.raises(UserError, match=r"mrt5_state_0\.json does not fit this model and recipe"):
        train(tmp_path, "run", resume_from=12)
    with pytest.raises(UserError, match=r"optimizer\.pt or scheduler\.pt does not fit this model"):
        train(tmp_path, "run", resume_from=8)


def test_the_only_checkpoint_has_none_before_it(copied: RunDir):
    shutil.rmtree(copied.checkpoint(8))
    (copied.checkpoint(12) / "optimizer.pt").unlink()
    with pytest.raises(UserError) as raised:
        check_whole(copied.checkpoint(12))
    assert "there is no earlier one" in str(raised.value.hint)


def test_every_process_needs_its_own_files(copied: RunDir):
    checkpoint = copied.checkpoint(12)
    state = (checkpoint / "mrt5_state_0.json").read_text().replace('"processes": 1', '"processes": 2')
    random = (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    for name in ("mrt5_state_0.json", "mrt5_state_1.json"):
        (checkpoint / name).write_text(state)
    with pytest.raises(UserError, match=r"it has no rng_state_1\.pth"):
        check_whole(copied.checkpoint(12))
    shutil.copy(random, checkpoint / "rng_state_1.pth")
    assert check_whole(copied.checkpoint(12)) == 2
    (checkpoint / "mrt5_state_1.json").write_text(state.replace('"processes": 2', '"processes": 3'))
    with pytest.raises(UserError, match=r"mrt5_state_1\.json is damaged \(written by 3 processes"):
        check_whole(copied.checkpoint(12))
    (checkpoint / "mrt5_state_1.json").write_text(state[:-20])
    with pytest.raises(UserError, match=r"mrt5_state_1\.json is cut off or damaged"):
        check_whole(copied.checkpoint(12))
