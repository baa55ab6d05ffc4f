"""Documents in memory: reading by position, epochs, and what is held out."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mrt5cli.data.corpus import IDS_OF_BYTES, Chunks, Corpus, Order, fingerprint, hold_out, split_of

documents = st.lists(
    st.binary(min_size=1, max_size=30).filter(lambda text: 0xFF not in text), min_size=1, max_size=12
)


@given(documents, st.data())
def test_reading_by_position_is_slicing_the_joined_documents(texts: list[bytes], data: st.DataObject) -> None:
    corpus = Corpus(texts)
    joined = b"".join(text + b"\xff" for text in texts)
    assert corpus.size == sum(map(len, texts))
    start = data.draw(st.integers(0, len(joined) - 1))
    stop = data.draw(st.integers(start + 1, len(joined)))
    assert Order(corpus).read(start, stop).tobytes() == joined[start:stop]


@given(documents, st.integers(0, 2**32))
def test_an_order_is_a_permutation_of_whole_documents(texts: list[bytes], seed: int) -> None:
    corpus = Corpus(texts)
    joined = Order(corpus, (seed, 1)).read(0, len(corpus.buffer)).tobytes()
    assert sorted(joined.split(b"\xff")[:-1]) == sorted(texts)
    assert joined == Order(Corpus(texts), (seed, 1)).read(0, len(corpus.buffer)).tobytes()


def test_empty_documents_are_none() -> None:
    assert Corpus([b"", b"a", b""]).lengths.tolist() == [2]
    assert Corpus([b""]).size == len(Corpus([]).buffer) == 0


def test_only_the_end_mark_is_eos() -> None:
    assert IDS_OF_BYTES[[0, 65, 254, 255]].tolist() == [3, 68, 257, 1]


@given(
    documents,
    st.integers(1, 20),
    st.integers(0, 200),
    st.lists(st.integers(0, 60), min_size=1, max_size=20),
    st.booleans(),
)
def test_a_piece_depends_on_its_number_alone(
    texts: list[bytes], size: int, seed: int, numbers: list[int], scattered: bool
) -> None:
    corpus = Corpus(texts)
    size = min(size, len(corpus.buffer))
    wanted = np.array(sorted(numbers))

    def read(numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        return Chunks(corpus, size, (seed,), scattered=scattered).read(numbers)

    np.testing.assert_array_equal(read(wanted), [read(np.array([number]))[0] for number in wanted])


def test_scattered_pieces_are_the_same_ones_and_those_of_a_document_lie_apart() -> None:
    corpus = Corpus([bytes([letter]) * 799 for letter in b"abcdefgh"])
    in_order, scattered = (Chunks(corpus, 8, (3,), scattered=flag) for flag in (False, True))
    assert scattered.per_epoch == 800
    for epoch in (np.arange(800), np.arange(800, 1600)):
        together, apart = in_order.read(epoch), scattered.read(epoch)
        assert sorted(map(bytes, together)) == sorted(map(bytes, apart))
        # Of 16 pieces in a row, all are of one document or two; drawn one by one, of four at least.
        assert max(len(set(together[at : at + 16, 0])) for at in range(0, 800, 16)) <= 2
        assert min(len(set(apart[at : at + 16, 0])) for at in range(0, 800, 16)) >= 4
    assert not np.array_equal(scattered.read(np.arange(800)), scattered.read(np.arange(800, 1600)))


def test_an_epoch_holds_every_document_once_and_the_next_has_another_order() -> None:
    texts = [f"{number:07d}".encode() for number in range(50)]
    chunks = Chunks(Corpus(texts), 8, (3,))
    assert chunks.per_epoch == 50
    first, second = chunks.read(np.arange(50)), chunks.read(np.arange(50, 100))
    for epoch in (first, second):
        assert sorted(row.tobytes()[:-1] for row in epoch) == texts
    assert not np.array_equal(first, second)


def test_fingerprints_never_change() -> None:
    """Else runs made before would be judged on documents they were trained on."""
    assert fingerprint(b"held out") == 0x6DED6EEEA3F227CF
    texts = [str(number).encode() for number in range(20_000)]
    shares = {
        split: sum(split_of(text) == split for text in texts) / len(texts) for split in ("validation", "test")
    }
    assert all(0.008 < share < 0.012 for share in shares.values()), shares


@given(st.lists(st.binary(min_size=1, max_size=2000), min_size=0, max_size=40))
def test_held_out_documents(texts: list[bytes]) -> None:
    splits = hold_out(texts, ("validation", "test"))
    assert sorted(text for split in splits.values() for text in split) == sorted(texts)
    sets = [set(split) for split in splits.values()]
    assert sum(map(len, sets)) == len(set(texts)), "equal documents share a split"
    if len(set(texts)) >= 3:
        assert all(sets)
        bytes_of = {text: len(text) * texts.count(text) for text in texts}
        assert max(bytes_of.values()) == max(bytes_of[text] for text in splits["train"]), (
            "the longest is trained on"
        )
    else:
        assert splits["train"] == texts
    assert [text for text in texts if text in set(splits["train"])] == splits["train"], "order is kept"


def test_shares_of_what_is_held_out() -> None:
    small = [f"{number} ".encode() * 20 for number in range(1000)]
    large = [f"{number} ".encode() * 2000 for number in range(1000)]
    for texts, share in ((small, 0.1), (large, 0.01)):
        total = sum(map(len, texts))
        splits = hold_out(texts, ("validation", "test"))
        for name in ("validation", "test"):
            assert share * total <= sum(map(len, splits[name])) < share * total + 12_000


def test_adding_text_moves_little() -> None:
    texts = [f"document {number} ".encode() * 700 for number in range(1000)]
    before, after = (set(hold_out(texts[:n], ("validation", "test"))["validation"]) for n in (900, 1000))
    assert len(before & after) >= 0.5 * len(before)
