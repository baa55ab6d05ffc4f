"""What a plan tells before a run: what is too much for the machine, cut, or of the wrong vocabulary."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mrt5cli import json_files, runtime
from mrt5cli.errors import RecipeError, UserError
from mrt5cli.models import MrT5Config
from mrt5cli.models.fast import choice
from mrt5cli.models.fast.choice import Choice
from mrt5cli.models.fast.kernels.checking import Work
from mrt5cli.recipe import Recipe, left_out_of_smoke, load, parse_overrides, smoke
from mrt5cli.rundir import RunState
from mrt5cli.training import record
from mrt5cli.training.choose import _division, _other_attention, choose
from mrt5cli.training.plan import RunOptions, TrainingPlan
from mrt5cli.training.start import model_to_start

SMALL = "model.shape={d_model: 16, d_ff: 16, d_kv: 8, num_heads: 2, num_layers: 3, num_decoder_layers: 1}"


def test_checkpoints_that_a_run_cannot_make_need_no_room(tmp_path: Path) -> None:
    recipe = load("quickstart_byt5", [SMALL, "training.keep_checkpoints=1000000"])
    assert choose(recipe, RunOptions(tmp_path / "run", device="cpu")).notes == []


def test_weights_that_do_not_fit_are_spoken_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "memory", lambda device: 100_000)
    [note] = choose(load("quickstart_byt5", [SMALL]), RunOptions(tmp_path / "run", device="cpu")).notes
    assert note.startswith("a training step of 64 examples needs about ")
    assert note.endswith(", and cpu has 100 kB")


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS"])
def test_a_process_that_trains_alone_says_so_where_a_launcher_speaks_of_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "4")
    recipe, options = load("quickstart_byt5", [SMALL]), RunOptions(tmp_path / "run", device="cpu")
    [note] = choose(recipe, options).notes
    assert note.startswith(f"{name}=4: ignored, this process trains alone; use torchrun")
    monkeypatch.setenv(name, "1")
    assert choose(recipe, options).notes == []


def test_shards_of_one_process_are_spoken_of(tmp_path: Path) -> None:
    recipe = load("quickstart_byt5", [SMALL, "training.sharding=fsdp"])
    [note] = choose(recipe, RunOptions(tmp_path / "run", device="cpu")).notes
    assert note == "training.sharding: fsdp has no effect with a single process"


@pytest.mark.parametrize(
    ("size", "processes", "found"),
    [
        (8, 4, 2),
        (8, 8, 1),
        (8, 16, "--set training.device_batch_size=4"),
        (8, 32, "--set training.device_batch_size=2"),
        (8, 3, "resume with a number of processes that divides training.batch_size"),
        (64, 128, "resume with a number of processes that divides training.batch_size"),
    ],
)
def test_a_step_is_divided_anew_among_other_processes(size: int, processes: int, found: int | str) -> None:
    training = load("quickstart_byt5", [f"training.device_batch_size={size}"]).training
    assert training.batch_size == 64
    if isinstance(found, int):
        assert _division(training, processes, resumed=True) == (size, found)
        return
    with pytest.raises(UserError, match=f"64 is not a multiple of {size * processes}") as raised:
        _division(training, processes, resumed=True)
    assert raised.value.hint == found


def test_byte_tokens_divide_a_share_of_a_step() -> None:
    training = load("quickstart_byt5", ["training.batch_tokens=1000"]).training
    assert _division(training, 4, resumed=False) == (16, 1)
    with pytest.raises(UserError, match=r"64 is not a multiple of 3 \(3 processes\)") as raised:
        _division(training, 3, resumed=False)
    assert raised.value.hint == "set training.batch_size, e.g. --set training.batch_size=66"


@pytest.mark.usefixtures("fast")
def test_what_attention_runs_by_is_said_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = row_plan(tmp_path, [("a", "w")])
    assert plan.facts["device"].endswith("; attention by packed (on a CPU)")
    assert plan.document["attention"] == "packed (on a CPU)"
    assert record.beginning(plan, plan.prepared)["attention"] == "packed (on a CPU)"
    asked = []

    def checked(work: Work) -> str:
        asked.append(work)
        return "the output is off by 3"

    choice._checked.cache_clear()
    monkeypatch.setattr(choice, "obstacle", lambda *_: None)
    monkeypatch.setattr(choice, "fault", checked)
    again = choose(plan.recipe, replace(plan.options, out=tmp_path / "other"))
    choice._checked.cache_clear()
    assert again.document["attention"].startswith("sdpa (the self-check of our kernels failed: the output is")
    [work] = asked
    assert work.trains and work.drops and not work.scored and work.width == 8


@pytest.mark.parametrize(
    ("before", "step", "rate", "noted"),
    [
        ("triton (checked)", 3, 0.1, True),
        ("packed (on a CPU)", 3, 0.1, False),
        ("triton (checked)", None, 0.1, False),  # starts again
        ("triton (checked)", 3, 0.0, False),  # drops nothing
        (None, 3, 0.1, False),  # of a version that did not say
    ],
)
def test_a_resumed_run_that_drops_other_weights_says_so(
    before: str | None, step: int | None, rate: float, noted: bool
) -> None:
    meta = {} if before is None else {"attention": before}
    plan: Any = SimpleNamespace(resume_step=step, before=RunState(meta=meta))
    now = Choice("packed", "on a CPU")
    notes = _other_attention(MrT5Config(dropout_rate=rate), plan, now)
    told = "attention was computed by triton (checked) and is now computed by packed"
    assert notes == [note for note in notes if told in note]
    assert bool(notes) == noted


# --- what is cut --------------------------------------------------------------------------------------------

ROWS = """
name: rows
description: Rows
task: {kind: word_search, source: {kind: files, path: PATH}, input_length: 16, target_length: 8}
training: {max_steps: 1, batch_size: 1, device_batch_size: 1}
model:
  start: scratch
  shape: {d_model: 16, d_ff: 16, d_kv: 8, num_heads: 2, num_layers: 2, num_decoder_layers: 1}
"""


def row_plan(tmp_path: Path, pairs: list[tuple[str, str]], *overrides: str) -> TrainingPlan:
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "validation", "test"):
        text = "".join(f"{source}\t{target}\n" for source, target in pairs)
        (data / f"{split}.tsv").write_text(text)
    path = tmp_path / "rows.yaml"
    path.write_text(ROWS.replace("PATH", str(data)))
    return choose(load(path, overrides), RunOptions(tmp_path / "run", device="cpu"))


def test_texts_that_are_cut_are_counted(tmp_path: Path) -> None:
    plan = row_plan(tmp_path, [("a", "w" * 7)] * 9 + [("a", "w" * 20)])
    assert "2 targets cut" in plan.facts["task"]


# --- vocabulary ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "told"), [(384, False), (512, False), (32_128, True)])
def test_a_vocabulary_of_pieces_of_words_is_spoken_of(tmp_path: Path, size: int, told: bool) -> None:
    from mrt5cli.models.config import MrT5Config
    from mrt5cli.models.mrt5 import MrT5ForConditionalGeneration

    shape = {"d_model": 8, "d_ff": 8, "d_kv": 4, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 1}
    config = MrT5Config(vocab_size=size, deletion_type="none", **shape)  # type: ignore[arg-type]
    MrT5ForConditionalGeneration(config).save_pretrained(tmp_path / "start")
    section = load("quickstart_byt5", [f"model={{start: '{tmp_path}/start'}}"]).model
    notes = [note for note in model_to_start(section).notes if "MrT5 reads bytes" in note]
    assert bool(notes) == told
    assert not told or "has a vocabulary of 32,128 subwords" in notes[0]


# --- what is set by hand stays in a smoke run ---------------------------------------------------------------


def small(recipe: str, *overrides: str) -> Recipe:
    return smoke(load(recipe, overrides), parse_overrides(overrides))


def test_what_is_set_by_hand_stays_in_a_smoke_run() -> None:
    recipe = small("multilingual_v3/mrt5_50", "training.max_steps=2", "training.save_steps=1", "seed=5")
    assert (recipe.training.max_steps, recipe.training.save_steps, recipe.seed) == (2, 1, 5)
    assert (recipe.task.input_length, recipe.name) == (64, "multilingual-v3-mrt5-50-smoke")
    assert small("multilingual_v3/mrt5_50", "task.input_length=128").task.input_length == 128
    recipe = small("multilingual_v3/mrt5_50", "model.shortener.layer=7")
    assert (recipe.model.shortener.layer, recipe.model.shape.num_layers) == (7, 8)
    assert small("quickstart_byt5", "model.shape.num_layers=5").model.shape.num_layers == 5
    shortener = small("english_v1/byt5", "model.shortener={kind: convolution, stride: 3}").model.shortener
    assert (shortener.stride, shortener.layer) == (3, 2)
    recipe = small("diagnostic_v3/merge_ABC_mrt5_1.5e-2", "task.mean_insertions=2", "task.length=24")
    assert (recipe.task.length, recipe.task.mean_insertions) == (24, 2)
    recipe = small("xnli_v3/mrt5_50", "task.languages=[de, en, fr]", "evaluation.examples=3")
    assert (recipe.task.languages, recipe.evaluation.examples) == (["de", "en", "fr"], 3)
    recipe = small("spelling_v3/byt5", "task.source.path=mine")
    assert (recipe.task.source.kind, recipe.task.source.path) == ("files", "mine")


@pytest.mark.parametrize(
    ("overrides", "batch", "device"),
    [
        (["training.batch_size=256"], 256, 8),
        (["training.device_batch_size=16"], 32, 16),
        (["training.batch_size=12", "training.device_batch_size=12"], 12, 12),
        ([], 4, 2),
    ],
)
def test_batches_that_are_set_by_hand(overrides: list[str], batch: int, device: int) -> None:
    training = small("multilingual_v3/mrt5_50", *overrides).training
    assert (training.batch_size, training.device_batch_size) == (batch, device)


def test_what_is_set_by_hand_and_does_not_fit_is_refused_with_the_way_out() -> None:
    with pytest.raises(RecipeError, match=r"training.warmup_steps *50 exceeds training.max_steps 6") as told:
        small("quickstart_byt5", "training.warmup_steps=50")
    assert told.value.hint is not None and "set the other key as well" in told.value.hint
    recipe = small("quickstart_byt5", "training.warmup_steps=50", "training.max_steps=60")
    assert (recipe.training.warmup_steps, recipe.training.max_steps) == (50, 60)


def test_what_a_smoke_run_replaces_all_the_same_is_told() -> None:
    overrides = ["task.languages=[en, de]", "task.source.patience=5m", "model.start=google/byt5-base"]
    full = load("multilingual_v3/mrt5_50", overrides)
    given = parse_overrides(overrides)
    recipe = smoke(full, given)
    assert (recipe.task.languages, recipe.model.start) == (["en"], "scratch")
    assert [note.partition(" is ignored")[0] for note in left_out_of_smoke(full, given)] == [
        "task.source",
        "task.languages",
        "model.start",
    ]
    assert left_out_of_smoke(load("quickstart_byt5", ["seed=3"]), {"seed": 3}) == []


# --- JSON ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "it is nested too deeply"),
        ('{"a":' * 100_000, "it is nested too deeply"),
        (f'{{"a": {"9" * 5000}}}', "more than 4,300 digits"),
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        (b'{"a": "\xff"}', "can't decode byte 0xff"),
        ("[]", "is not a JSON object"),
    ],
)
def test_whatever_is_wrong_with_json_is_one_sentence(tmp_path: Path, text: Any, words: str) -> None:
    path = tmp_path / "meta.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=words) as told:
        json_files.read_object(path)
    assert str(path) in told.value.message and len(told.value.message) < 300


def test_json_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"a": [1, 2.5, None]}))
    assert json_files.read_object(tmp_path / "a.json") == {"a": [1, 2.5, None]}
    with pytest.raises(UserError, match="cannot be read: No such file"):
        json_files.read_object(tmp_path / "b.json")
