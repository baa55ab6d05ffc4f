"""Deleted bytes: every byte is counted once, shown truthfully, and can be read back from what is shown."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from variants import batch_of, random_rows, shared

from mrt5cli.analysis.deletions import (
    InspectedRow,
    inspect_batch,
    inspect_text,
    kind_table,
    pieces,
    total_rate,
)
from mrt5cli.analysis.inspection import Inspection, Segments
from mrt5cli.analysis.marked_text import coloured, legend, plain, runs
from mrt5cli.data.characters import beginning, byte_kinds, characters, clusters, script, shown
from mrt5cli.models import MrT5Config

EOS = 1
texts = st.text(alphabet=st.characters(codec="utf-8"), max_size=40) | st.text("[]-⟨⟩␣ ⏎\n✗:a", max_size=12)
raw = st.binary(max_size=60)


def ids_of(text: bytes) -> list[int]:
    return [byte + 3 for byte in text] + [EOS]


def flags_for(data: st.DataObject, length: int) -> list[bool]:
    return data.draw(st.lists(st.booleans(), min_size=length, max_size=length))


def read_back(shown: str) -> tuple[list[int], list[bool]]:
    """Ids and deletions from the colourless form: the reader that proves that the form is unambiguous."""
    ids, deleted, inside = [], [], False
    shown = shown.replace("⏎\n", "⏎").replace("⏎-]\n", "⏎-]").replace("◌", "")
    while shown:
        if not inside and shown.startswith("[-"):
            inside, shown = True, shown[2:]
            continue
        if inside and shown.startswith("-]"):
            inside, shown = False, shown[2:]
            continue
        named = re.match(r"⟨([^⟩]*)⟩", shown)
        token, shown = (named[1], shown[named.end() :]) if named else (shown[0], shown[1:])
        found, flags = read_token(token, bool(named))
        ids += found
        deleted += flags or [inside] * len(found)
    return ids, deleted


def read_token(token: str, named: bool) -> tuple[list[int], list[bool]]:
    """Ids of one shown character, and which of them are deleted when the token itself says so."""
    if not named:
        token = {"⏎": "\n", "⇥": "\t", "␣": " "}.get(token, token)
        return [byte + 3 for byte in token.encode()], []
    if token == "EOS":
        return [EOS], []
    if re.fullmatch(r"[0-9a-f]{2}", token):
        return [int(token, 16) + 3], []
    if re.fullmatch(r"U\+[0-9A-F]+", token):
        return [byte + 3 for byte in chr(int(token[2:], 16)).encode()], []
    marks = token.rsplit(":", 1)[1].split()
    return [int(mark.strip("✗"), 16) + 3 for mark in marks], [mark.startswith("✗") for mark in marks]


# --- characters ---


@given(text=texts)
def test_text_is_cut_into_its_characters(text: str) -> None:
    found = characters(ids_of(text.encode()))

    assert [c.text for c in found] == [*text, None]
    assert [i for c in found for i in c.ids] == ids_of(text.encode())


@given(text=raw)
def test_any_bytes_are_cut_without_loss(text: bytes) -> None:
    found = characters(ids_of(text))

    assert [i for c in found for i in c.ids] == ids_of(text)
    assert [c.start for c in found] == list(np.cumsum([0] + [len(c.ids) for c in found[:-1]]))
    assert "".join(c.text or "" for c in found) == text.decode(errors="ignore")


@given(text=raw | texts.map(str.encode))
def test_clusters_hold_every_character_once(text: bytes) -> None:
    found = characters(ids_of(text))

    assert [one for cluster in clusters(found) for one in cluster] == found


@pytest.mark.parametrize(
    "drawn",
    [
        ["e\u0301", "x"],
        ["\u0915\u094d\u0937", "\u0924\u094d\u0930\u093f", "\u092f"],
        ["\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\U0001f44d\U0001f3fd"],
        ["\u0e19\u0e49\u0e33", "\u06cc\u200c", "\u062e"],
        ["\r", "\n", "\n", "\u200f", "a"],
    ],
)
def test_what_is_drawn_as_one_is_one_cluster(drawn: list[str]) -> None:
    found = clusters(characters([*ids_of("".join(drawn).encode())[:-1], 0xFF + 3, 258, EOS]))

    assert ["".join(one.text or "" for one in cluster) for cluster in found[:-3]] == drawn
    assert [len(cluster) for cluster in found[-3:]] == [1, 1, 1]


def test_what_a_terminal_hides_is_named() -> None:
    shown = [c.visible for c in characters([b + 3 for b in "\x1b\u202e\u200d\u00a0\ufeff⟨".encode()])]

    assert shown == ["⟨U+001B⟩", "⟨U+202E⟩", "⟨U+200D⟩", "⟨U+00A0⟩", "⟨U+FEFF⟩", "⟨U+27E8⟩"]


def test_sentinels_have_names_only_where_there_are_some() -> None:
    assert [c.visible for c in characters([258, 257, 248], sentinels=11)] == ["⟨S0⟩", "⟨S1⟩", "⟨S10⟩"]
    assert [c.visible for c in characters([258, 257, 248], sentinels=2)] == ["⟨S0⟩", "⟨S1⟩", "⟨f5⟩"]
    assert [c.visible for c in characters([258, 257, 248])] == ["⟨ff⟩", "⟨fe⟩", "⟨f5⟩"]


def bytes_of(text: str) -> bytes:
    """What `shown` was given, read back from what people see."""
    units = re.findall(r"⟨([^⟩]*)⟩|([^⟨⟩])", text)
    plain = {"⏎": "\n", "⇥": "\t"}
    return b"".join(
        plain.get(character, character).encode()
        if character
        else chr(int(name[2:], 16)).encode()
        if name.startswith("U+")
        else bytes.fromhex(name)
        for name, character in units
    )


@given(text=texts, cut=st.integers(0, 12))
def test_what_people_are_shown_holds_every_byte_also_of_a_character_cut_in_two(text: str, cut: int) -> None:
    whole = text.encode()
    left = whole[: max(0, len(whole) - cut)]

    assert bytes_of(shown(ids_of(left))) == left
    assert "\ufffd" in text or "\ufffd" not in shown(ids_of(left))


def test_a_cut_euro_sign_is_what_is_left_of_it() -> None:
    ids = [*(byte + 3 for byte in "3 €".encode()[:-1]), EOS, 0]

    assert shown(ids) == "3 ⟨e2⟩⟨82⟩"
    assert shown([-100, *ids[:2], 258, EOS], sentinels=1) == "3 ⟨S0⟩"


def test_the_beginning_of_a_text_cuts_no_name() -> None:
    text = "ab⟨e2⟩⟨82⟩cd"

    assert beginning(text, len(text)) == text
    assert [beginning(text, length) for length in (11, 10, 9, 7)] == [
        "ab⟨e2⟩ ...",
        "ab⟨e2⟩ ...",
        "ab ...",
        "ab ...",
    ]


def test_a_character_cut_by_another_id_is_stray_bytes() -> None:
    assert [c.visible for c in characters([0xD0 + 3, EOS, 0xB5 + 3])] == ["⟨d0⟩", "⟨EOS⟩", "⟨b5⟩"]
    assert [c.visible for c in characters([0xE4 + 3, 0xB8 + 3])] == ["⟨e4⟩", "⟨b8⟩"]


def test_kinds_of_byte() -> None:
    found = characters([*ids_of("aZ7 \n!\x07жไ—".encode() + b"\xff"), 300])

    assert [kind for c in found for kind in byte_kinds(c)] == [
        "vowels a e i o u",
        "other letters a-z",
        "digits",
        "spaces",
        "newlines",
        "punctuation",
        "control characters",
        "Cyrillic: lead bytes",
        "Cyrillic: continuation bytes",
        "Thai: lead bytes",
        *["Thai: continuation bytes"] * 2,
        "shared: lead bytes",
        *["shared: continuation bytes"] * 2,
        "bytes that are not UTF-8",
        "EOS",
        "other ids",
    ]
    assert (script("é"), script("中"), script("😀"), script("ᚠ")) == (
        "Latin",
        "Han",
        "shared",
        "other scripts",
    )


# --- marked text ---


@given(text=texts, data=st.data())
def test_text_and_deletions_can_be_read_back_from_the_plain_form(text: str, data: st.DataObject) -> None:
    ids = ids_of(text.encode())
    flags = flags_for(data, len(ids))

    assert read_back(plain(runs(characters(ids), flags))) == (ids, flags)


@given(text=raw, data=st.data())
def test_raw_bytes_can_be_read_back_too(text: bytes, data: st.DataObject) -> None:
    ids = ids_of(text)
    flags = flags_for(data, len(ids))

    assert read_back(plain(runs(characters(ids), flags))) == (ids, flags)


@pytest.mark.parametrize(
    ("text", "deleted", "shown"),
    [
        ("there", [2, 4], "th[-e-]r[-e-]⟨EOS⟩"),
        ("a  b", [1, 2], "a[-␣␣-]b⟨EOS⟩"),
        ("nжт", [1, 2, 4], "n[-ж-]⟨т:d1 ✗82⟩⟨EOS⟩"),
        ("a\nb", [1], "a[-⏎-]\nb⟨EOS⟩"),
        ("[-]", [], "⟨U+005B⟩-⟨U+005D⟩⟨EOS⟩"),
        ("[-]", [1], "[[---]]⟨EOS⟩"),
        ("e\u0301", [0], "[-e-]◌\u0301⟨EOS⟩"),
        ("e\u0301", [], "e\u0301⟨EOS⟩"),
        ("no", [2], "no[-⟨EOS⟩-]"),
    ],
)
def test_plain_form(text: str, deleted: list[int], shown: str) -> None:
    ids = ids_of(text.encode())

    assert plain(runs(characters(ids), [i in deleted for i in range(len(ids))])) == shown


def test_only_wholly_deleted_characters_are_struck_out() -> None:
    row = runs(characters(ids_of("нжт".encode())), [True, True, True, False, False, False, False])

    text = coloured(row)

    assert text.plain == "н⟨ж:✗d0 b6⟩т⟨EOS⟩"
    struck = [text.plain[span.start : span.end] for span in text.spans if "strike" in str(span.style)]
    assert struck == ["н"]


def test_the_legend_explains_what_is_there_and_nothing_else() -> None:
    row = runs(characters(ids_of(b"a b")), [False, True, False, False])

    assert legend([row], colour=False) == "[-...-] deleted; ␣ deleted space"
    assert legend([row], colour=True).startswith("struck out: deleted")
    assert legend([runs(characters(ids_of(b"ab")), [False] * 3)], colour=False) == ""


# --- segments ---


def read_segments_back(shown: str) -> tuple[list[int], list[int]]:
    """Ids and where segments start, from the colourless form."""
    ids: list[int] = []
    starts = [0]
    shown = shown.replace("⏎\n", "⏎").replace("◌", "")
    while shown:
        if shown.startswith("|"):
            starts.append(len(ids))
            shown = shown[1:]
            continue
        named = re.match(r"⟨([^⟩]*)⟩", shown)
        token, shown = (named[1], shown[named.end() :]) if named else (shown[0], shown[1:])
        split = re.fullmatch(r".*:([0-9a-f]{2}(?:[ |][0-9a-f]{2})+)", token) if named else None
        if split is None:
            ids += read_token(token, bool(named))[0]
            continue
        for mark in re.findall(r"\|?[0-9a-f]{2}", split[1]):
            if mark.startswith("|"):
                starts.append(len(ids))
            ids.append(int(mark.strip("|"), 16) + 3)
    return ids, starts


def pooled_row(ids: list[int], starts: list[bool], window: int | None = None) -> InspectedRow:
    return InspectedRow(np.array(ids), ~np.array(starts), None, window=window)


@given(text=texts | st.text("|[]-⟨⟩⏎\n:aжé\u0301", max_size=12), data=st.data())
def test_text_and_segments_can_be_read_back_from_the_plain_form(text: str, data: st.DataObject) -> None:
    ids = ids_of(text.encode())
    starts = [True, *flags_for(data, len(ids) - 1)]
    row = pooled_row(ids, starts)

    assert read_segments_back(plain(runs(row.characters, row.starts.tolist(), pooled=True))) == (
        ids,
        np.flatnonzero(starts).tolist(),
    )
    assert row.segments is not None
    assert [i for start, length in row.segments for i in ids[start : start + length]] == ids
    assert sum(length * count for length, count in Segments.of([row]).lengths.items()) == len(ids)
    assert row.rate.total == len(ids) - len(row.segments)


@pytest.mark.parametrize(
    ("text", "starts", "shown"),
    [
        ("Hello world", [0, 3, 5, 9], "Hel|lo| wor|ld⟨EOS⟩"),
        ("a|b", [0, 1], "a|⟨U+007C⟩b⟨EOS⟩"),
        ("nжт", [0, 2, 5], "n⟨ж:d0|b6⟩т|⟨EOS⟩"),
        ("中", [0, 1, 2], "⟨中:e4|b8|ad⟩⟨EOS⟩"),
        ("中", [0, 2], "⟨中:e4 b8|ad⟩⟨EOS⟩"),
        ("a\nb", [0, 2], "a⏎\n|b⟨EOS⟩"),
        ("e\u0301", [0, 1], "e|◌\u0301⟨EOS⟩"),
        ("e\u0301", [0], "e\u0301⟨EOS⟩"),
        ("[-a-]", [0], "[-a-]⟨EOS⟩"),
    ],
)
def test_plain_form_of_segments(text: str, starts: list[int], shown: str) -> None:
    ids = ids_of(text.encode())

    assert plain(runs(characters(ids), [i in starts for i in range(len(ids))], pooled=True)) == shown


def test_neighbouring_segments_have_different_colours() -> None:
    ids = ids_of("ab cdж".encode())
    row = runs(characters(ids), [i in (0, 2, 3, 6) for i in range(len(ids))], pooled=True)

    text = coloured(row)

    assert text.plain == "ab| |cd⟨ж:d0|b6⟩⟨EOS⟩"
    styles = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert styles == {"|": "dim", " ": "cyan", "⟨ж:d0|b6⟩": "bold yellow", "⟨EOS⟩": "cyan"}
    assert legend([row], colour=True) == (
        "| between pooled segments, each of which becomes one position; "
        "⟨ж:d0|b6⟩ a character that two segments share"
    )


def test_segments_that_start_inside_a_character() -> None:
    ids = ids_of("aжb中".encode())

    starts = [i in (0, 1, 3, 5, 6) for i in range(len(ids))]
    assert Segments.of([pooled_row(ids, starts)]).inside_characters == 2
    assert Segments.of([pooled_row(ids, [i in (0, 1, 3) for i in range(len(ids))])]).inside_characters == 0


def test_a_dropped_tail_is_in_no_segment() -> None:
    row = pooled_row(ids_of(b"abcdefghi"), [i in (0, 4) for i in range(10)], window=4)

    assert row.segments == [(0, 4), (4, 4)]
    assert row.dropped == 2
    assert plain(runs(row.characters, row.starts.tolist(), pooled=True)) == "abcd|efgh|i⟨EOS⟩"
    assert row.rate.value == 0.8


# --- models ---


class KnownGate:
    """A model whose gate deletes given bytes: it has the encoder's interface and nothing else."""

    def __init__(self, doomed: set[int]) -> None:
        self.doomed = doomed
        self.encoder = self._encode
        self.config = MrT5Config()

    def parameters(self):
        yield torch.zeros(1)

    def _encode(self, input_ids, attention_mask, hard_delete, deletion_threshold):
        gone = torch.isin(input_ids, torch.tensor(sorted(self.doomed)))
        keep = ~gone & (input_ids != 0)
        return SimpleNamespace(keep_mask=keep, delete_gate_output=torch.where(keep, -0.5, -29.0))


def test_rows_lose_their_padding_and_keep_their_targets() -> None:
    ids = torch.tensor([[100, 101, 1, 0], [100, 1, 0, 0]])
    labels = torch.tensor([[101, 1], [1, -100]])

    first, second = inspect_batch(
        KnownGate({100}),
        {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels},
        task=SimpleNamespace(deletable=lambda ids, gate: ids == 100, sentinels=0),
    )

    assert first.ids.tolist() == [100, 101, 1]
    assert first.deleted.tolist() == [True, False, False]
    assert second.ids.tolist() == [100, 1]
    assert second.target is not None and second.target.tolist() == [1]
    assert second.deletable is not None and second.deletable.tolist() == [True, False]
    assert total_rate([first, second]).value == pytest.approx(2 / 5)


@given(text=raw, length=st.integers(5, 20), doomed=st.sets(st.integers(3, 258), max_size=20))
def test_pieces_hold_the_text_and_the_table_counts_every_byte_once(
    text: bytes, length: int, doomed: set
) -> None:
    rows = inspect_text(KnownGate(doomed), text, length)

    together = [i for row in rows for i in row.ids if i != EOS]
    assert together == [byte + 3 for byte in text]
    assert all(len(row.ids) <= length and row.ids[-1] == EOS for row in rows)

    kept = [i for row in rows for i, gone in zip(row.ids, row.deleted, strict=True) if not gone and i != EOS]
    assert kept == [byte + 3 for byte in text if byte + 3 not in doomed]

    table = kind_table(rows)
    assert sum(kind.count for kind in table.values()) == sum(len(row.ids) for row in rows)
    assert sum(kind.total for kind in table.values()) == total_rate(rows).total


@given(text=texts, length=st.integers(5, 12))
def test_no_character_is_split_between_pieces(text: str, length: int) -> None:
    decoded = [bytes(int(i) - 3 for i in piece[:-1]).decode() for piece in pieces(text.encode(), length)]

    assert "".join(decoded) == text


def test_pieces_stop_at_the_limit() -> None:
    assert len(inspect_text(KnownGate(set()), b"x" * 100, 11, limit=3)) == 3
    with pytest.raises(ValueError, match="EOS"):
        list(pieces(b"abc", 4))


def test_a_real_gate_deletes_what_its_keep_mask_says(tiny_gated_model) -> None:
    rows = inspect_text(tiny_gated_model, "Was bleibt übrig? Что останется?".encode(), 24)

    for row in rows:
        ids = torch.from_numpy(row.ids)[None]
        out = tiny_gated_model(input_ids=ids, labels=ids, hard_delete=True)
        assert (~out.keep_mask[0]).tolist() == row.deleted.tolist()
        assert int(out.kept_lengths[0]) == (~row.deleted).sum()
        np.testing.assert_array_equal(row.deleted, row.gate <= tiny_gated_model.config.deletion_threshold)
    assert 0 < total_rate(rows).total < total_rate(rows).count


@pytest.mark.parametrize("fallback", ["best", "first"])
def test_gate_values_tell_what_another_threshold_deletes(
    fallback: str, tiny_gated_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_gated_model.config, "row_without_survivors", fallback)
    monkeypatch.setattr(tiny_gated_model.encoder.block[1].delete_gate, "fallback", fallback)
    text = b"Every row keeps something."
    (row,) = inspect_text(tiny_gated_model, text, 64)
    values = sorted(row.gate.tolist())
    # In float32 they are those values.
    beside = [np.nextafter(value, towards) for value in values[:3] for towards in (0, -99)]

    for threshold in [*values[::5], *beside, values[-1], -1e-9, -0.7, -29.99]:
        (other,) = inspect_text(tiny_gated_model, text, 64, threshold=threshold)
        assert row.deleted_at(threshold).tolist() == other.deleted.tolist(), threshold
    assert row.deleted_at(-1e-9).sum() == len(text)


def test_a_model_that_deletes_by_another_rule_is_not_movable() -> None:
    rows = inspect_text(KnownGate({100}), b"aaa", 8)
    odd = [replace(row, deleted=~row.deleted) for row in rows]

    assert Inspection("one", "scaled_sigmoid", -15.0, rows).movable
    assert not Inspection("one", "scaled_sigmoid", -15.0, odd).movable
    assert not Inspection("one", "random", -15.0, rows, fixed="deletes at random").movable


def test_the_threshold_can_be_replaced(tiny_gated_model) -> None:
    few = inspect_text(tiny_gated_model, b"The threshold moves the rate.", 64, threshold=-25.0)
    many = inspect_text(tiny_gated_model, b"The threshold moves the rate.", 64, threshold=-5.0)

    assert total_rate(few).total < total_rate(many).total


@pytest.mark.parametrize("variant", ["bp_gumbel", "bp_unigram", "cp_3", "cp_4"])
def test_segments_of_real_poolings(variant: str) -> None:
    model = shared(variant)
    text = "Was bleibt übrig? Что останется?".encode()

    rows = inspect_text(model, text, 24)

    assert [i for row in rows for i in row.ids if i != EOS] == [byte + 3 for byte in text]
    for row in rows:
        out = model(input_ids=torch.from_numpy(row.ids)[None], labels=torch.ones(1, 1, dtype=torch.long))
        assert row.segments is not None
        assert row.gate is None
        assert row.dropped == 0
        assert len(row.segments) == int(out.kept_lengths[0])
        assert sum(length for _, length in row.segments) == len(row.ids)
        if variant.startswith("cp"):
            stride = model.config.downsampling_rate
            assert all(length == stride for _, length in row.segments[:-1])
        else:
            ends = [start + length - 1 for start, length in row.segments][:-1]
            assert ends == (out.boundary_logits[0, :-1] > 0).nonzero()[:, 0].tolist()
    assert 0 < total_rate(rows).total < total_rate(rows).count


def test_a_batch_of_pooled_rows_is_that_of_each_row() -> None:
    ids, mask = batch_of(random_rows([14, 5, 1]), 3)
    for variant in ("bp_gumbel", "cp_3"):
        together = inspect_batch(shared(variant), {"input_ids": ids, "attention_mask": mask})
        for place, row in enumerate(together):
            alone = ids[place, : len(row.ids)][None]
            (found,) = inspect_batch(
                shared(variant), {"input_ids": alone, "attention_mask": torch.ones_like(alone)}
            )
            assert found.segments == row.segments


@pytest.fixture(scope="module")
def tiny_gated_model():
    from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration

    torch.manual_seed(3)
    config = MrT5Config(
        d_model=32, d_ff=48, d_kv=8, num_heads=2, num_layers=2, num_decoder_layers=1, delete_gate_layer=1
    )
    model = MrT5ForConditionalGeneration(config)
    gate = model.encoder.block[1].delete_gate
    # A wide spread around the threshold, so that some bytes go and some stay.
    torch.nn.init.normal_(gate.feed_forward.weight, std=0.5)
    torch.nn.init.zeros_(gate.feed_forward.bias)
    return model.eval()
