"""Streams: order, resuming, ranks, loader workers, languages."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import pickle
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import hubsim
import numpy as np
import pytest
import torch
from hub_server import HubServer
from torch.utils.data import DataLoader

from mrt5cli import hub as hub_module
from mrt5cli.data import sources
from mrt5cli.data.formats import DataFile
from mrt5cli.data.sources import SKIP_HINT
from mrt5cli.data.streams import END, DocumentStream, LeftOut
from mrt5cli.data.texts import text_files
from mrt5cli.errors import UserError
from mrt5cli.recipe import DiagnosticTask, SpanCorruptionTask
from mrt5cli.tasks import Batch, BatchStream, Task, build_task
from mrt5cli.tasks.span_corruption import Noise
from mrt5cli.text import say_nothing
from mrt5cli.training.choose import _at_commit

RAW = 70  # tokens of text in an input of 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two languages, 7 files each; every document names its language, file and number."""
    root = tmp_path_factory.mktemp("streams")
    for language in ("en", "sw"):
        (root / language).mkdir()
        for shard in range(7):
            rows = [{"text": f"{language}-{shard}-{n} " * (3 + n % 40)} for n in range(50)]
            content = "".join(json.dumps(row) + "\n" for row in rows)
            (root / language / f"train-{shard}.jsonl").write_text(content)
        rows = [{"text": f"{language}-held-{n} " * 30} for n in range(40)]
        (root / language / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def span_task(
    folder: Path,
    *,
    streaming: bool,
    languages: tuple[str, ...] = ("en", "sw"),
    shuffle: str = "documents",
) -> Task:
    section = {
        "kind": "span_corruption",
        "shuffle": shuffle,
        "source": {"kind": "files", "path": str(folder), "streaming": streaming},
        "languages": list(languages),
        "input_length": 64,
        "mean_span_length": 3.0,
    }
    return build_task(SpanCorruptionTask.model_validate(section))


@pytest.fixture(scope="module", params=["memory", "scattered", "streamed", "generated"])
def task(request: pytest.FixtureRequest, folder: Path) -> Task:
    if request.param == "generated":
        return build_task(DiagnosticTask(kind="merge_ABC", length=20, train_examples=500))
    shuffle = "examples" if request.param == "scattered" else "documents"
    return span_task(folder, streaming=request.param == "streamed", shuffle=shuffle)


def take(stream: BatchStream | DataLoader[Batch], count: int) -> list[Batch]:
    return list(itertools.islice(iter(stream), count))


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a[name], b[name]) for a, b in zip(first, second, strict=True) for name in a
    )


def unpadded(batches: list[Batch]) -> list[tuple[list[int], list[int]]]:
    """Source and target ids of every example."""
    rows = [row for batch in batches for row in zip(batch["input_ids"], batch["labels"], strict=True)]
    return [(source[source != 0].tolist(), target[target != -100].tolist()) for source, target in rows]


def seekable(task: Task) -> bool:
    return not any(isinstance(part.text, sources.StreamedText) for part in getattr(task, "parts", ()))


# --- any stream
# -----------------------------------------------------------------------------------------------------


def test_a_seed_is_an_order(task: Task) -> None:
    first = take(task.train_stream(batch_size=4, seed=1), 30)
    assert same(first, take(task.train_stream(batch_size=4, seed=1), 30))
    assert not same(first[:1], take(task.train_stream(batch_size=4, seed=2), 1))
    rows = torch.cat([batch["input_ids"] for batch in first])
    assert len(torch.unique(rows, dim=0)) == len(rows), "no example comes twice"


@pytest.mark.parametrize("consumed", [1, 5, 13])
def test_resuming_goes_on_exactly(task: Task, consumed: int) -> None:
    whole = take(task.train_stream(batch_size=4, seed=1), 20)
    stream = task.train_stream(batch_size=4, seed=1)
    iterator = iter(stream)
    for _ in range(consumed):
        next(iterator)
    state = json.loads(json.dumps(stream.state_dict()))
    assert state["start_batch"] == consumed
    # A loader that reads ahead has taken two more batches than the training has used.
    next(iterator), next(iterator)
    ahead = json.loads(json.dumps(stream.state_dict(consumed)))
    for saved in (state, ahead, {**ahead, "mark": None}):
        resumed = task.train_stream(batch_size=4, seed=1)
        resumed.load_state_dict(saved)
        assert resumed.start_batch == consumed
        assert same(take(resumed, 20 - consumed), whole[consumed:])


def test_resuming_by_number_alone(task: Task) -> None:
    whole = take(task.train_stream(batch_size=4, seed=1), 12)
    resumed = task.train_stream(batch_size=4, seed=1)
    resumed.start_batch = 7
    assert same(take(resumed, 5), whole[7:])
    assert same(take(resumed, 5), whole[7:]), "a second pass begins at the same batch"


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 6), (3, 4), (4, 3), (12, 1)])
def test_ranks_divide_what_one_would_get(task: Task, world_size: int, batch_size: int) -> None:
    one = take(task.train_stream(batch_size=12, seed=1), 6)
    ranks = [
        take(task.train_stream(batch_size=batch_size, seed=1, rank=rank, world_size=world_size), 6)
        for rank in range(world_size)
    ]
    assert unpadded([batches[number] for number in range(6) for batches in ranks]) == unpadded(one)


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 12), (3, 4), (4, 3), (1, 4)])
def test_another_number_of_ranks_goes_on(task: Task, world_size: int, batch_size: int) -> None:
    """After 4 batches of 2 ranks, of 6 examples each, with the state of the first rank."""
    whole = take(task.train_stream(batch_size=12, seed=1), 7)
    former = task.train_stream(batch_size=6, seed=1, rank=0, world_size=2)
    take(former, 6)
    at_once = batch_size * world_size
    state = json.loads(json.dumps({**former.state_dict(4), "start_batch": 4 * 12 // at_once}))
    ranks = []
    for rank in range(world_size):
        stream = task.train_stream(batch_size=batch_size, seed=1, rank=rank, world_size=world_size)
        stream.load_state_dict(state)
        ranks.append(take(stream, 36 // at_once))
    found = [batch for together in zip(*ranks, strict=True) for batch in together]
    assert unpadded(found) == unpadded(whole[4:])


def test_a_state_of_another_rank_says_only_how_far_it_came(task: Task) -> None:
    """Checkpoints often hold rank 0's state alone."""
    first, second = (task.train_stream(batch_size=4, seed=1, rank=rank, world_size=2) for rank in range(2))
    take(first, 6)
    whole = take(second, 9)
    resumed = task.train_stream(batch_size=4, seed=1, rank=1, world_size=2)
    resumed.load_state_dict(first.state_dict())
    assert same(take(resumed, 3), whole[6:])


@pytest.mark.parametrize("start", [0, 3])
def test_loader_workers_change_nothing(task: Task, start: int) -> None:
    whole = take(task.train_stream(batch_size=4, seed=1, rank=1, world_size=2), 11)
    stream = task.train_stream(batch_size=4, seed=1, rank=1, world_size=2)
    stream.start_batch = start
    loader = DataLoader(stream, batch_size=None, num_workers=2)
    assert same(take(loader, 8), whole[start : start + 8])
    state = json.loads(json.dumps(stream.state_dict(start + 7)))
    if not seekable(task):
        assert start + 6 <= state["mark"][0] // 8 <= start + 7, "the readers' places came along"
    resumed = task.train_stream(batch_size=4, seed=1, rank=1, world_size=2)
    resumed.load_state_dict(state)
    assert same(take(resumed, 1), whole[start + 7 : start + 8])


def test_streams_can_be_sent_to_other_processes(task: Task) -> None:
    stream = task.train_stream(batch_size=2, seed=1)
    assert same(take(pickle.loads(pickle.dumps(stream)), 3), take(stream, 3))


def test_batches_own_their_memory(task: Task) -> None:
    for batch in take(task.train_stream(batch_size=2, seed=1), 3):
        for tensor in batch.values():
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


# --- languages
# ------------------------------------------------------------------------------------------------------


def test_both_languages_come(folder: Path) -> None:
    for streaming in (False, True):
        batches = take(span_task(folder, streaming=streaming).train_stream(batch_size=16, seed=1), 8)
        rows = torch.cat([batch["input_ids"] for batch in batches])
        texts = ["".join(chr(i - 3) for i in row if 3 <= i < 131) for row in rows.tolist()]
        english = sum("en-" in text for text in texts)
        assert english + sum("sw-" in text for text in texts) == len(texts)
        assert english == 64


def test_noise_depends_on_seed_and_example_alone() -> None:
    one = [generator.integers(2**62) for generator in Noise(1).generators(np.arange(20))]
    two = [generator.integers(2**62) for generator in Noise(1).generators(np.array([19, 3]))]
    assert two == [one[19], one[3]]
    assert len(set(one)) == 20
    assert one[0] != next(Noise(2).generators(np.arange(1))).integers(2**62)


# --- streamed text
# --------------------------------------------------------------------------------------------------


def hub_task(hub: HubServer, languages: list[str], name: str = "owner/streams", **source: Any) -> Task:
    section = {
        "kind": "span_corruption",
        "source": {"kind": "hub", "name": name, **source},
        "languages": languages,
        "input_length": 64,
        "mean_span_length": 3.0,
    }
    return build_task(SpanCorruptionTask.model_validate(section))


@pytest.fixture
def corpus(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The Hub with the two languages of `folder`, and pauses that do not keep a test."""
    monkeypatch.setattr(hub_module, "FIRST_PAUSE", 0.05)
    if not (hub.root / "datasets/owner/streams").exists():

        def make(place: Path) -> None:
            shutil.copytree(folder, place, dirs_exist_ok=True)
            splits = {"train": "train-*", "validation": "validation*"}
            entries = {c: {s: f"{c}/{name}" for s, name in splits.items()} for c in ("en", "sw")}
            hubsim.write_card(place, entries)

        hub.add("datasets/owner/streams", make)
    return hub


def text_of(batches: list[Batch]) -> str:
    return "".join(
        chr(i - 3) for batch in batches for i in batch["input_ids"].flatten().tolist() if 3 <= i < 131
    )


def test_hub_files_are_read_in_an_order_drawn_from_the_seed(corpus: HubServer) -> None:
    def first_files(**source: Any) -> list[str]:
        task = hub_task(corpus, ["en"], **source)
        texts = [text_of(take(task.train_stream(batch_size=4, seed=seed), 2)) for seed in range(6)]
        return ["".join(f"{n}" for n in range(7) if f"en-{n}-" in text) for text in texts]

    assert first_files(shuffle_shards=False) == ["0"] * 6
    assert len(set(first_files())) > 2
    assert first_files() == first_files()


def test_an_epoch_is_followed_by_another(corpus: HubServer, folder: Path) -> None:
    task = hub_task(corpus, ["en"])
    stream = task.train_stream(batch_size=64, seed=1)
    size = sum(
        len(json.loads(line)["text"]) + 1
        for file in (folder / "en").glob("train*")
        for line in file.read_text().splitlines()
    )
    epoch = size // (64 * RAW)
    batches = take(stream, 2 * epoch + 3)
    state = json.loads(json.dumps(stream.state_dict()))
    assert state["mark"][3] == 2, "the third pass"
    resumed = task.train_stream(batch_size=64, seed=1)
    resumed.load_state_dict(state)
    assert same(take(resumed, 2), take(task.train_stream(batch_size=64, seed=1), 2 * epoch + 5)[-2:])
    # All of the text, in whatever order, in the first epoch.
    assert all(f"en-{shard}-{n} " in text_of(batches[: epoch + 1]) for shard in range(7) for n in (30, 39))


def test_held_out_of_the_hub(corpus: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    task = hub_task(corpus, ["sw", "en"])
    validation = list(task.held_out("validation", "sw", batch_size=4))
    assert same(validation, list(task.held_out("test", "sw", batch_size=4))), (
        "other languages have no test split"
    )
    assert "sw-held-0 " in text_of(validation[:1])
    take(task.train_stream(batch_size=4, seed=3), 1)
    assert same(validation, list(task.held_out("validation", "sw", batch_size=4)))
    # English: what comes after the validation examples.
    monkeypatch.setattr(sources, "ENGLISH_VALIDATION_EXAMPLES", 10)
    english = torch.cat([b["input_ids"] for b in task.held_out("validation", "en", batch_size=4)])
    test = list(task.held_out("test", "en", batch_size=4))
    assert sum(len(b["labels"]) for b in test) == len(english) - 10
    rows = {bytes(row.numpy()) for row in torch.cat([b["input_ids"] for b in test])}
    assert rows.isdisjoint(bytes(row.numpy()) for row in english[:10])


def test_a_mixture_of_the_hub_and_files(corpus: HubServer, folder: Path) -> None:
    streamed = {"kind": "hub", "name": "owner/streams", "weight": 3}
    files = {"kind": "files", "path": str(folder), "languages": ["sw"]}
    section = SpanCorruptionTask.model_validate(
        {"kind": "span_corruption", "sources": [streamed, files], "input_length": 64, "mean_span_length": 3.0}
    )
    task = build_task(section)
    whole = take(task.train_stream(batch_size=16, seed=1), 16)
    assert text_of(whole).count("en-") > text_of(whole).count("sw-") > 0
    stream = task.train_stream(batch_size=16, seed=1)
    take(stream, 9)
    resumed = build_task(section).train_stream(batch_size=16, seed=1)
    resumed.load_state_dict(json.loads(json.dumps(stream.state_dict(7))))
    assert same(take(resumed, 9), whole[7:])
    assert task.subsets("test") == ["streams/en", f"{folder.name}/sw"]
    assert [task.is_remote(subset) for subset in task.subsets("test")] == [True, False]
    # A resumed run reads the commit that it began with.
    [commit] = task.commits().values()
    pinned = _at_commit(section, {"owner/streams": commit})
    assert isinstance(pinned, SpanCorruptionTask)
    assert [getattr(one, "revision", "none") for one in pinned.sources] == [commit, "none"]
    assert _at_commit(pinned, {"owner/streams": "another"}) == pinned
    # What cannot be read is told with a way out that a mixture has.
    _, name = publish(corpus, {"train-0.jsonl": b"no JSON\n"})
    broken = section.sources[0].model_copy(update={"name": name})
    with pytest.raises(UserError) as caught:
        take(
            build_task(section.model_copy(update={"sources": [broken]})).train_stream(batch_size=1, seed=1), 1
        )
    assert "set skip_corrupt: true in this source of task.sources to leave it out" in str(caught.value.hint)


def test_hub_refusals(corpus: HubServer) -> None:
    task = hub_task(corpus, ["en"], text_column="body")
    with pytest.raises(UserError, match=r"train-\d.jsonl, line 1: no column 'body'; it has text"):
        take(task.train_stream(batch_size=1, seed=1), 1)
    corpus.add("datasets/owner/train-only", lambda place: only_training(place))
    with pytest.raises(UserError, match="has no test split for 'en'; it has train"):
        list(hub_task(corpus, ["en"], "owner/train-only").held_out("test", "en", batch_size=1))


def only_training(place: Path) -> None:
    (place / "a.jsonl").write_text('{"text": "a"}\n')
    hubsim.write_card(place, {"en": {"train": "a.jsonl"}})


# --- damage -------------------------------------------------------------------------------------------------

DRAW = random.Random(1)
ROWS = [
    json.dumps({"text": f"document {number} of many, some damaged {DRAW.randbytes(60).hex()}"})
    for number in range(400)
]


def packed(rows: list[str]) -> bytes:
    return gzip.compress("".join(row + "\n" for row in rows).encode(), mtime=0)


def publish(hub: HubServer, files: dict[str, bytes], **source: Any) -> tuple[Task, str]:
    """A task on English files, in order; and the name of the dataset, which is new."""
    name = f"owner/damaged-{next(NUMBERS)}"

    def make(place: Path) -> None:
        for file, content in files.items():
            (place / file).write_bytes(content)
        hubsim.write_card(place, {"en": {"train": "'*'"}})

    hub.add(f"datasets/{name}", make)
    return hub_task(hub, ["en"], name, shuffle_shards=False, **source), name


NUMBERS = itertools.count()


def one_pass(task: Task) -> str:
    """All text of one pass, as it comes."""
    stream = task.parts[0].text.held_out("en", "train", 0)  # type: ignore[attr-defined]
    return stream.take(1_000_000).tobytes().replace(b"\xff", b"\n").decode()


def test_a_file_that_is_damaged_on_its_way_is_fetched_again(corpus: HubServer) -> None:
    task, _ = publish(corpus, {"a.json.gz": packed(ROWS[:200]), "b.json.gz": packed(ROWS[200:])})
    whole = one_pass(task)
    for number in (0, 199, 200, 399):
        assert whole.count(f"document {number} of") == 1
    for at in (100, 7000, -4):  # in the middle, and in the sum at the end
        corpus.fault("GET .*/b.json.gz", "corrupt", at=at % len(packed(ROWS[200:])))
        assert one_pass(task) == whole
    corpus.fault("GET .*/a.json.gz", "cut", after=900, times=3)
    assert one_pass(task) == whole


@pytest.mark.parametrize("damage", ["flipped", "truncated", "no gzip at all"])
def test_a_damaged_file_names_file_row_and_way_out(corpus: HubServer, damage: str) -> None:
    content = packed(ROWS[200:])
    if damage == "flipped":
        content = content[:7000] + bytes(byte ^ 0xFF for byte in content[7000:7064]) + content[7064:]
    elif damage == "truncated":
        content = content[:-300]
    else:
        content = b"<html>not found</html>"
    files = {"a.json.gz": packed(ROWS[:200]), "b.json.gz": content, "c.json.gz": packed(ROWS[:20])}
    task, name = publish(corpus, files)
    with pytest.raises(UserError) as caught:
        one_pass(task)
    found = re.fullmatch(rf"{name}, b.json.gz after line (\d+): damaged, .*", caught.value.message)
    assert found is not None and int(found[1]) < 200
    assert caught.value.hint == SKIP_HINT
    assert len(corpus.requests("/b.json.gz")) == 2, "it is fetched once more, to be sure"


def test_what_is_left_of_a_damaged_file_can_be_left_out(
    corpus: HubServer, capfd: pytest.CaptureFixture[str]
) -> None:
    content = packed(ROWS[200:])[:-300]
    files = {"a.json.gz": packed(ROWS[:200]), "b.json.gz": content, "c.json.gz": packed(ROWS[:20])}
    task, name = publish(corpus, files, skip_corrupt=True)
    text = one_pass(task)
    assert "document 200 of" in text and "document 399 of" not in text
    assert text.count("document 3 of") == 2, "the file after it is read"
    assert task.remarks() == ["left out of the data: the rest of 1 damaged file"]
    told = capfd.readouterr().err
    assert re.fullmatch(rf"left out the rest of {name}, b.json.gz after line \d+: .*\(number 1\)\n", told)


WRONG_LINES = {
    "no JSON": ('{"text": oops}', "not JSON: Expecting value at column 10"),
    "no row": ('["text"]', 'not an object, expected a row such as {"text": "..."}'),
    "half a line": ('{"text": "do', "not JSON: Invalid control character at column 13"),
}


@pytest.mark.parametrize("wrong", WRONG_LINES)
def test_lines_that_are_no_rows(corpus: HubServer, wrong: str) -> None:
    line, reason = WRONG_LINES[wrong]
    files = {"a.jsonl": "\n".join([*ROWS[:10], line, "", line, *ROWS[10:20]]).encode()}
    task, name = publish(corpus, files)
    with pytest.raises(UserError) as caught:
        one_pass(task)
    assert caught.value.message == f"{name}, a.jsonl, line 11: {reason}"
    assert caught.value.hint == SKIP_HINT
    task, _ = publish(corpus, files, skip_corrupt=True)
    assert one_pass(task) == "".join(json.loads(row)["text"] + "\n" for row in ROWS[:20])
    assert task.remarks() == ["left out of the data: 2 invalid lines"]


@pytest.mark.parametrize("skip", [False, True])
def test_a_column_of_another_type_has_no_way_out(corpus: HubServer, skip: bool) -> None:
    rows = [*ROWS[:10], '{"text": 7}', *ROWS[10:20]]
    task, name = publish(corpus, {"a.json.gz": packed(rows)}, skip_corrupt=skip)
    with pytest.raises(UserError) as caught:
        one_pass(task)
    assert caught.value.message == f"{name}, a.json.gz, line 11: column 'text' is 7, expected text"
    assert caught.value.hint is None
    rows = [*ROWS[:10], '{"txt": "a"}']
    task, name = publish(corpus, {"a.json.gz": packed(rows)}, skip_corrupt=skip)
    with pytest.raises(UserError, match=r"a.json.gz, line 11: no column 'text'; it has txt") as caught:
        one_pass(task)
    assert "text_column" in str(caught.value.hint)


def test_parquet_of_the_hub(corpus: HubServer, tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"url": ["u"] * 400, "text": [json.loads(row)["text"] for row in ROWS]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=64)
    content = (tmp_path / "a.parquet").read_bytes()
    task, _ = publish(corpus, {"a.parquet": content})
    whole = one_pass(task)
    assert whole.startswith("document 0 of") and whole.count("document 399 of") == 1
    corpus.fault("GET .*/a.parquet", "status", code=503, times=2)
    assert one_pass(task) == whole
    # What a reader of bytes raises goes through Arrow as it is.
    corpus.fault("GET .*/a.parquet", "status", code=403)
    with pytest.raises(UserError, match=r"the Hub refuses .*a.parquet: it responds with status 403"):
        one_pass(task)
    corpus.fault("GET .*/a.parquet", "corrupt", at=len(content) - 20, times=9)
    with pytest.raises(UserError, match=r"a.parquet after row 0: damaged"):
        one_pass(task)
    corpus.clear()
    stream = task.parts[0].text.train("en", key=(1,))  # type: ignore[attr-defined]
    stream.take(len(whole) // 2)
    state = stream.state_dict()
    after = stream.take(300).tobytes()
    again = task.parts[0].text.train("en", key=(1,))  # type: ignore[attr-defined]
    again.load_state_dict(json.loads(json.dumps(state)))
    assert again.take(300).tobytes() == after


def test_counts_of_what_is_left_out_survive_a_resume(corpus: HubServer) -> None:
    lines = [
        line for number, row in enumerate(ROWS) for line in ([row, "broken"] if number % 9 == 0 else [row])
    ]
    task, _ = publish(corpus, {"a.json.gz": packed(lines)}, skip_corrupt=True)
    stream = task.train_stream(batch_size=4, seed=1)
    batches = take(stream, 20)
    remarks, state = stream.remarks(), json.loads(json.dumps(stream.state_dict()))
    assert re.fullmatch(r"left out of the data: \d+ invalid lines", remarks[0])
    for saved in (state, {**state, "mark": None}):
        resumed = task.train_stream(batch_size=4, seed=1)
        resumed.load_state_dict({**saved, "start_batch": 10})
        assert same(take(resumed, 10), batches[10:])
        assert resumed.remarks() == remarks
    # Every worker leaves them out, and one of them counts.
    loaded = task.train_stream(batch_size=4, seed=1)
    take(DataLoader(loaded, batch_size=None, num_workers=2), 20)
    assert loaded.state_dict(20) == state
    [counted] = re.findall(r"\d+", loaded.remarks()[0])
    assert int(counted) < 1.5 * int(re.findall(r"\d+", remarks[0])[0])


def rows_in_memory(*rows: str) -> list[DataFile]:
    lines = "\n".join(json.dumps({"text": row}) if row != "broken" else row for row in rows).encode()
    return text_files([DataFile("a.jsonl", lambda: io.BytesIO(lines))])


def test_what_cannot_be_read_any_more_is_left_out_whole_after_a_resume() -> None:
    stream = DocumentStream(rows_in_memory("x" * 500, "short", "next"), "text", endless=False)
    assert len(stream.take(300)) == 300
    left_out = LeftOut([0, 0], say_nothing)
    damaged = rows_in_memory("broken", "short", "next")
    resumed = DocumentStream(damaged, "text", endless=False, left_out=left_out)
    resumed.load_state_dict(stream.state_dict())
    assert resumed.take(100).tobytes() == b"short" + END + b"next" + END
    assert left_out.counts == [1, 0]


def test_a_text_that_has_become_shorter_is_refused_after_a_resume() -> None:
    stream = DocumentStream(rows_in_memory("first", "x" * 500), "text")
    stream.take(306)
    for length, refused in ((500, False), (300, False), (299, True), (10, True)):
        resumed = DocumentStream(rows_in_memory("first", "y" * length), "text", endless=False)
        if not refused:
            resumed.load_state_dict(stream.state_dict())
            assert resumed.take(1000).tobytes() == b"y" * (length - 300) + END
            continue
        with pytest.raises(UserError, match=f"a.jsonl, line 2 has changed .* has {length + 1} bytes"):
            resumed.load_state_dict(stream.state_dict())


def test_a_program_that_ends_in_the_middle_of_a_file_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(packed(ROWS))
    code = f"""
from pathlib import Path
from mrt5cli.data.texts import text_files
from mrt5cli.data.formats import DataFile
from mrt5cli.data.streams import DocumentStream
file = Path({str(tmp_path / "a.jsonl.gz")!r})
stream = DocumentStream(text_files([DataFile.local(file)]), "text")
print(len(stream.take(100)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("100\n", "")


def test_local_files_streamed_hold_out_by_fingerprint(tmp_path: Path) -> None:
    texts = [f"document {n} with some text to fill it up" for n in range(3000)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    task = span_task(tmp_path, streaming=True, languages=("en",))
    held_out = {
        split: text_of(list(task.held_out(split, "en", batch_size=8))) for split in ("validation", "test")
    }
    train = text_of(take(task.train_stream(batch_size=64, seed=1), 20))
    numbers = [
        {word for word in text.split() if word.isdigit() and len(word) == 4}
        for text in (*held_out.values(), train)
    ]
    assert all(len(found) > 5 for found in numbers)
    # Corrupted numbers may lose digits, whole ones of four cannot come from another document.
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(numbers, 2))


def test_streamed_text_files_and_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a.txt").write_text("\n\n".join(f"paragraph {n} " * 9 for n in range(200)))
    (tmp_path / "p").mkdir()
    parquet.write_table(
        pa.table({"text": [f"paragraph {n} " * 9 for n in range(200)]}), tmp_path / "p" / "a.parquet"
    )
    for name in "tp":
        task = span_task(tmp_path / name, streaming=True, languages=("en",))
        assert "paragraph 1" in text_of(take(task.train_stream(batch_size=64, seed=1), 3))


def test_streaming_refusals(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match="needs one folder per language"):
        span_task(tmp_path, streaming=True)
    (tmp_path / "a.jsonl").write_text('{"text": oops}\n')
    with pytest.raises(UserError, match=r"a.jsonl, line 1: not JSON: .*\n.*repair it"):
        take(span_task(tmp_path, streaming=True, languages=("en",)).train_stream(batch_size=1, seed=1), 1)
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(UserError, match="found no text"):
        take(span_task(tmp_path, streaming=True, languages=("en",)).train_stream(batch_size=1, seed=1), 1)
