"""Labels of where segments end: of known texts, of any bytes, of ragged rows, from files, in a training."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mrt5cli.byte_tokens import EOS, encode
from mrt5cli.data import boundary_labels
from mrt5cli.data.boundary_labels import LABELLERS, BoundaryLabeller, EntropyLabeller, UnigramLabeller, load
from mrt5cli.errors import UserError
from mrt5cli.recipe import DiagnosticTask, SpanCorruptionTask
from mrt5cli.recipe.shorteners import BoundaryPredictor, NoShortener
from mrt5cli.tasks.base import build_task
from mrt5cli.training.boundaries import LabelledStream, source_rows, with_labels

WORDS = ["abcd", "efgh", "ijkl", "mnop", "qrst", "uvwx"]
# Sentinels, and ids that are no bytes.
OTHERS = [258, 257, EOS, 2, 300]


def rows_of(*texts: str | bytes) -> np.ndarray[Any, Any]:
    """Ids (B, L) of texts, "$" for EOS, padded with 0."""
    ids = []
    for text in texts:
        raw = text.encode() if isinstance(text, str) else text
        ids.append(np.where(encode(raw) == encode("$")[0], EOS, encode(raw)))
    rows = np.zeros((len(ids), max(map(len, ids))), dtype=np.int64)
    for row, values in zip(rows, ids, strict=True):
        row[: len(values)] = values
    return rows


def segments(labeller: BoundaryLabeller, text: str) -> list[str]:
    """A text, cut where its labels say."""
    ends = np.flatnonzero(labeller.label(rows_of(text))[0]) + 1
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def random_text(number: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, number))


@pytest.fixture(scope="module")
def texts() -> np.ndarray[Any, Any]:
    rows = [
        f"{random_text(30, seed)}. {random_text(5, seed)}!\n{random_text(9, seed)}$" for seed in range(60)
    ]
    found = rows_of(*rows, b"\xff\xfe\x00 odd bytes, \x80\x81 of no text$")
    found[-1, 5:10] = 300, 259, 383, 2, EOS
    return found


@pytest.fixture(scope="module", params=sorted(LABELLERS))
def labeller(request: pytest.FixtureRequest, texts: np.ndarray[Any, Any]) -> BoundaryLabeller:
    return LABELLERS[request.param].fit(texts, vocabulary=300)


@pytest.fixture(scope="module")
def unigram(texts: np.ndarray[Any, Any]) -> UnigramLabeller:
    return UnigramLabeller.fit(texts, vocabulary=300)


# --- both ---------------------------------------------------------------------------------------------------


ROWS = st.lists(
    st.lists(st.sampled_from([*encode("abcd efgh.\nx\x00\x80").tolist(), *OTHERS]), max_size=24),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=60)
@given(rows=ROWS, before=st.integers(0, 3), behind=st.integers(0, 3))
def test_a_rows_labels_depend_on_nothing_but_the_row(
    labeller: BoundaryLabeller, rows: list[list[int]], before: int, behind: int
) -> None:
    width = max(map(len, rows)) + before + behind
    batch = np.zeros((len(rows), width), dtype=np.int64)
    for number, row in enumerate(rows):
        batch[number, before : before + len(row)] = row
    labels = labeller.label(batch)
    assert labels.dtype == np.bool_ and labels.shape == batch.shape
    for number, row in enumerate(rows):
        alone = labeller.label(np.array([row], dtype=np.int64).reshape(1, -1))[0]
        assert labels[number, before : before + len(row)].tolist() == alone.tolist()
        if row:
            assert alone[-1]
            assert all(alone[place] for place, number_ in enumerate(row) if number_ == EOS)
    assert not labels[batch == 0].any()


def test_nothing_at_all(labeller: BoundaryLabeller) -> None:
    assert labeller.label(np.zeros((2, 0), dtype=np.int64)).shape == (2, 0)
    assert not labeller.label(np.zeros((2, 3), dtype=np.int64)).any()


def test_labels_come_from_tensors_too(labeller: BoundaryLabeller, texts: np.ndarray[Any, Any]) -> None:
    assert (labeller.label(torch.from_numpy(texts)) == labeller.label(texts)).all()


def test_a_file_gives_the_same_labels_and_the_same_file(
    labeller: BoundaryLabeller, texts: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    labeller.save(tmp_path / "one.npz")
    again = load(tmp_path / "one.npz")
    assert type(again) is type(labeller)
    assert (again.label(texts) == labeller.label(texts)).all()
    again.save(tmp_path / "two.npz")
    type(labeller).fit(texts, vocabulary=300).save(tmp_path / "three.npz")
    contents = {file.read_bytes() for file in tmp_path.iterdir()}
    assert len(contents) == 1, "saving or fitting again made another file"


@pytest.mark.parametrize(
    "damage", ["absent", "empty", "cut", "text", "foreign", "another kind", "missing array"]
)
def test_a_damaged_file_is_named(labeller: BoundaryLabeller, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "boundaries.npz"
    labeller.save(path)
    whole = path.read_bytes()
    if damage == "absent":
        path.unlink()
    elif damage == "foreign":
        np.savez(path, weights=np.zeros(3))
    elif damage == "another kind":
        np.savez(path, kind=np.array("whitespace"))
    elif damage == "missing array":
        np.savez(path, kind=np.array(labeller.kind))
    else:
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"boundaries"}[damage])
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(path) in str(caught.value) and "--out" in str(caught.value)


@pytest.mark.parametrize("kind", sorted(LABELLERS))
def test_a_segment_is_a_word(kind: str) -> None:
    """In text of a few words; which side of the space it is on depends on the kind."""
    labeller = LABELLERS[kind].fit(rows_of(*(random_text(50, seed) for seed in range(40))), vocabulary=300)
    text = random_text(40, seed=99)
    found = segments(labeller, text)
    assert "".join(found) == text
    assert [segment.strip() for segment in found] == text.split()
    assert all(segment[0 if kind == "unigram" else -1] == " " for segment in found[1:-1])


# --- unigram ------------------------------------------------------------------------------------------------


def pieces(labeller: UnigramLabeller) -> list[str]:
    text, ends = labeller.bytes.tobytes().decode("latin-1"), np.cumsum(labeller.lengths).tolist()
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def test_a_token_has_its_space_in_front_and_nothing_behind(unigram: UnigramLabeller) -> None:
    assert segments(unigram, "abcd efgh") == ["abcd", " efgh"]
    assert segments(unigram, "abcd,  efgh\nijkl") == ["abcd", ",", " ", " efgh", "\nijkl"]


@settings(deadline=None)
@given(raw=st.binary(min_size=1, max_size=40))
def test_no_token_reaches_beyond_a_word(unigram: UnigramLabeller, raw: bytes) -> None:
    ids = encode(raw)[None]
    ends = np.flatnonzero(unigram.label(ids)[0]) + 1
    for start, end in zip([0, *ends], ends, strict=False):
        token = raw[start:end]
        kinds = {boundary_labels.CLASSES[byte + 3] for byte in token.lstrip(b" \t\n\r")}
        assert len(kinds) <= 1, token
        assert boundary_labels.ALONE not in kinds or len(token) == 1, token


def test_sentinels_and_ends_of_documents_stand_alone(unigram: UnigramLabeller) -> None:
    ids = np.concatenate([encode("abcd"), [258], encode(" efgh"), [EOS], encode("ijkl")])[None]
    assert np.flatnonzero(unigram.label(ids)[0]).tolist() == [3, 4, 9, 10, 14]


def test_tokens_are_the_likeliest(unigram: UnigramLabeller) -> None:
    """Against every way to cut a word, by brute force."""
    score = dict(zip(pieces(unigram), unigram.scores.tolist(), strict=True))
    for word in ["abcd", "efabgh", "cdef", " mnop", "qrstuv", "\x80\x81ab"]:
        ids = encode(word.encode("latin-1"))[None]
        ends = np.flatnonzero(unigram.label(ids)[0]) + 1
        chosen = [word[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        best = -math.inf
        for cuts in range(2 ** (len(word) - 1)):
            places = [place for place in range(1, len(word)) if cuts >> (place - 1) & 1]
            parts = [word[a:b] for a, b in zip([0, *places], [*places, len(word)], strict=True)]
            best = max(best, sum(score.get(part, -math.inf) for part in parts))
        assert sum(score[part] for part in chosen) == pytest.approx(best)


def test_vocabulary_counts_the_single_bytes(texts: np.ndarray[Any, Any]) -> None:
    for vocabulary in (257, 280, 300):
        found = pieces(UnigramLabeller.fit(texts, vocabulary=vocabulary))
        assert len(found) == len(set(found)) <= vocabulary
        assert {chr(byte) for byte in range(256)} <= set(found)
    assert len(found) > 270, "no longer tokens were learned"
    with pytest.raises(ValueError, match="256"):
        UnigramLabeller.fit(texts, vocabulary=256)


def test_without_words_each_byte_is_a_token() -> None:
    labeller = UnigramLabeller.fit(rows_of("$$"), vocabulary=300)
    assert segments(labeller, "abc") == ["a", "b", "c"]


def test_what_is_remembered_changes_nothing(
    texts: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    labeller = UnigramLabeller.fit(texts, vocabulary=300)
    first = labeller.label(texts)
    assert (labeller.label(texts) == first).all()
    monkeypatch.setattr(boundary_labels, "MOST_REMEMBERED", 3)
    monkeypatch.setattr(boundary_labels, "LONGEST_REMEMBERED", 2)
    assert (labeller.label(texts) == first).all()
    assert (labeller.label(texts) == first).all()


def test_white_space_at_the_end_of_a_row_is_the_same_before_padding(texts: np.ndarray[Any, Any]) -> None:
    indented = [f"abcd:{' ' * (4 + number % 3)}efgh" for number in range(30)]
    labeller = UnigramLabeller.fit(rows_of(*indented), vocabulary=300)
    rows = rows_of("abcd   ", "abcd      efgh")
    assert segments(labeller, "abcd   ")[-1] == "   "
    assert (
        np.flatnonzero(labeller.label(rows)[0]).tolist()
        == np.flatnonzero(labeller.label(rows[:1, :7])[0]).tolist()
    )


# --- entropy ------------------------------------------------------------------------------------------------


def test_a_spike_exceeds_both_positions_before_it(
    texts: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    labeller = EntropyLabeller.fit(texts)
    # 0    1    2    3    4    5    6    7    8
    bits = np.array([[2.0, 1.0, 3.0, 2.5, 2.7, 4.0, 4.0, 4.5, 1.0]])
    monkeypatch.setattr(labeller, "entropy", lambda ids: bits)
    # Position 2 exceeds 0 and 1; 4 exceeds 3, not 2; 5 exceeds 3 and 4; 6 equals 5; 7 exceeds 5 and 6.
    assert np.flatnonzero(labeller.label(np.full((1, 9), 100))[0]).tolist() == [1, 4, 6, 8]
    bits = np.array([[1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    monkeypatch.setattr(labeller, "entropy", lambda ids: bits)
    assert np.flatnonzero(labeller.label(np.full((1, 9), 100))[0]).tolist() == [0, 8]


def test_entropies_are_those_of_the_interpolated_model(texts: np.ndarray[Any, Any]) -> None:
    """Against counts in dictionaries, for contexts that were seen and for others."""
    counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for row in np.where(texts > 258, 2, texts).tolist():
        history = [0, 0, 0]
        for symbol in row:
            if symbol:
                for length in range(4):
                    counts[tuple(history[3 - length :])][symbol] += 1
                history = [*history[1:], symbol]

    def probabilities(context: tuple[int, ...]) -> list[float]:
        lower = probabilities(context[1:]) if context else [1 / 259] * 259
        seen = counts.get(context)
        if not seen:
            return lower
        whole = seen.total() + len(seen)
        return [(seen[symbol] + len(seen) * lower[symbol]) / whole for symbol in range(259)]

    labeller = EntropyLabeller.fit(texts)
    ids = rows_of("abcd efgh.\nqzzq abab$ijkl", b"\xff\xfe\x00 of\x80 no\x9f text  .!!")
    found = labeller.entropy(ids)
    for row, bits in zip(ids.tolist(), found.tolist(), strict=True):
        history = [0, 0, 0]
        for symbol, value in zip((symbol for symbol in row if symbol), bits, strict=False):
            expected = -sum(p * math.log2(p) for p in probabilities(tuple(history)))
            assert value == pytest.approx(expected, abs=6e-4)
            history = [*history[1:], symbol]


def test_fitting_in_pieces_changes_nothing(
    texts: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = EntropyLabeller.fit(texts)
    monkeypatch.setattr(boundary_labels, "AT_ONCE", 7)
    pieces = EntropyLabeller.fit(texts)
    assert (whole.after_three == pieces.after_three).all()


def test_no_text_to_fit_to() -> None:
    with pytest.raises(ValueError, match="no text"):
        EntropyLabeller.fit(np.zeros((2, 4), dtype=np.int64))


# --- in a training ------------------------------------------------------------------------------------------


def vowels(**settings: Any) -> Any:
    return build_task(DiagnosticTask(kind="vowel_removal", length=16, train_examples=500, **settings))


def spans(path: Path, *, streaming: bool) -> Any:
    path.mkdir(exist_ok=True)
    for number in range(4):
        lines = "\n\n".join(random_text(40, seed=10 * number + line) for line in range(10))
        (path / f"part{number}.txt").write_text(lines)
    return build_task(
        SpanCorruptionTask.model_validate(
            {
                "kind": "span_corruption",
                "source": {"kind": "files", "path": str(path), "streaming": streaming},
                "input_length": 64,
            }
        )
    )


def taught(kind: str) -> BoundaryPredictor:
    least = {"gumbel": {}, "entropy": {"label_examples": 60}}
    settings = least.get(kind, {"label_examples": 60, "vocabulary": 300})
    return BoundaryPredictor.model_validate({"kind": "boundary_predictor", "type": kind, **settings})


def no_word(text: str) -> None:
    raise AssertionError(f"said: {text}")


def test_which_shorteners_are_taught() -> None:
    assert taught("entropy").labels == "entropy"
    assert taught("unigram").labels == "unigram"
    assert taught("gumbel").labels is None
    assert NoShortener(kind="none").labels is None


def first_ids(stream: Any, number: int) -> list[list[list[int]]]:
    batches = iter(stream)
    return [next(batches)["input_ids"].tolist() for _ in range(number)]


@pytest.mark.parametrize("kind", sorted(LABELLERS))
@pytest.mark.parametrize("data", ["generated", "memory", "streamed"])
def test_fitting_does_not_move_the_training_stream(kind: str, data: str, tmp_path: Path) -> None:
    def task() -> Any:
        return vowels() if data == "generated" else spans(tmp_path / "text", streaming=data == "streamed")

    plain = first_ids(task().train_stream(batch_size=3, seed=5), 8)
    told: list[str] = []
    one = task()
    stream = one.train_stream(batch_size=3, seed=5)
    random = torch.get_rng_state(), np.random.get_state()[1].tolist()
    labelled = with_labels(stream, one, taught(kind), tmp_path / "boundaries.npz", True, told.append)
    assert torch.equal(torch.get_rng_state(), random[0])
    assert np.random.get_state()[1].tolist() == random[1]
    assert first_ids(labelled, 8) == plain
    assert f"fitting {kind} boundaries to 60 training examples" in told[0]
    assert "bytes on average" in told[1]


def test_labels_are_fitted_once_and_read_ever_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = vowels()

    def begin(*, fresh: bool, say: Any = no_word) -> LabelledStream:
        stream = with_labels(
            task.train_stream(batch_size=4, seed=1),
            task,
            taught("unigram"),
            tmp_path / "boundaries.npz",
            fresh,
            say,
        )
        assert isinstance(stream, LabelledStream)
        return stream

    with pytest.raises(UserError, match=r"boundaries\.npz does not exist"):
        begin(fresh=False)
    first = next(iter(begin(fresh=True, say=lambda _: None)))
    before = (tmp_path / "boundaries.npz").read_bytes()
    for again in (begin(fresh=True), begin(fresh=False)):
        batch = next(iter(again))
        assert all(torch.equal(batch[name], first[name]) for name in first)
    assert (tmp_path / "boundaries.npz").read_bytes() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_labelled_stream_goes_on_where_it_was(
    unigram: UnigramLabeller, tmp_path: Path, workers: int
) -> None:
    task = spans(tmp_path / "text", streaming=False)

    def begin(state: dict[str, Any] | None = None) -> Any:
        stream = LabelledStream(task.train_stream(batch_size=3, seed=5), unigram)
        if state:
            stream.load_state_dict(state)
        return stream, iter(DataLoader(stream, batch_size=None, num_workers=workers))

    stream, batches = begin()
    expected = [next(batches) for _ in range(8)]
    for batch in expected:
        labels = torch.from_numpy(unigram.label(batch["input_ids"].numpy()))
        assert torch.equal(batch["segment_ends"], labels)
    _, batches = begin(stream.state_dict(5))
    for batch in expected[5:]:
        found = next(batches)
        assert all(torch.equal(found[name], batch[name]) for name in batch)


def test_a_labelled_streams_state_is_that_of_the_stream_in_it(
    unigram: UnigramLabeller, tmp_path: Path
) -> None:
    plain = spans(tmp_path / "text", streaming=True).train_stream(batch_size=3, seed=5)
    inner = spans(tmp_path / "text", streaming=True).train_stream(batch_size=3, seed=5)
    labelled = LabelledStream(inner, unigram)
    first_ids(plain, 4), first_ids(labelled, 4)
    assert labelled.state_dict() == plain.state_dict()
    assert labelled.state_dict(3) == plain.state_dict(3)


def test_source_rows_are_as_many_as_asked_for() -> None:
    task = vowels()
    assert source_rows(task, 7).shape == (7, 16)
    assert source_rows(task, 120).shape == (120, 16)
    assert (source_rows(task, 120)[:7] == source_rows(task, 120)[:7]).all()
