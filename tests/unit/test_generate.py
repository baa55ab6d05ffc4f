"""Outputs for any number of inputs, in Python: the model's own, in their order, whatever is beside them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import make_run
from variants import KINDS, shared, writer

import mrt5cli
from mrt5cli import generate
from mrt5cli.byte_tokens import encode
from mrt5cli.errors import RunFailed, UserError
from mrt5cli.generation import writing
from mrt5cli.generation.generate import Settings, as_text, windows
from mrt5cli.generation.inputs import Input, Source
from mrt5cli.generation.outputs import RowFormat, format_of
from mrt5cli.generation.workers import Workers, in_turn
from mrt5cli.generation.writing import Options, Pen, Text
from mrt5cli.models.fast.switch import fast_paths
from mrt5cli.recipe.schema import EvaluationSection, GenerationSection

TEXTS = ["", "a", "hello", "été", "what is it", "where did they all go then", "x" * 40, "b\nc", "d\0e"]


def alone(model: Any, text: str, most: int, **how: Any) -> list[int]:
    ids = torch.from_numpy(encode(text, add_eos=True))[None]
    with torch.inference_mode():
        found = model.generate(ids, max_new_tokens=most, do_sample=False, **how)[0, 1:].tolist()
    return found[: found.index(1)] if 1 in found else found


@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("variant", KINDS)
def test_every_model_writes_what_it_writes_alone(variant: str, hard: bool) -> None:
    model = writer(variant)
    for tokens in (70, 10_000):
        how = {"max_new_tokens": 9, "hard_delete": hard, "batch_tokens": tokens, "scores": False}
        found = list(generate(model, TEXTS, **how))

        assert [one.bytes for one in found] == [
            bytes(i - 3 for i in alone(model, text, 9, hard_delete=hard)) for text in TEXTS
        ]
        assert [one.input for one in found] == TEXTS
        assert [one.index for one in found] == list(range(len(TEXTS)))


def test_a_gate_that_is_told_its_rate_needs_no_text() -> None:
    """What it deletes of a text does not depend on those that come first."""
    how: dict[str, Any] = {"max_new_tokens": 3, "deletion_rate": 0.7}
    told, other = writer("quantile"), writer("mrt5")
    assert list(generate(told, [], **how)) == []
    with pytest.raises(UserError, match="no text to calibrate"):
        list(generate(other, [], **how))
    together = [one.kept for one in generate(told, TEXTS, **how)]
    alone = [one.kept for text in TEXTS for one in generate(told, [text], **how)]
    assert together == alone != [one.kept for one in generate(told, TEXTS, max_new_tokens=3)]


def test_rate_0_deletes_nothing_and_needs_a_gate_conditioned_on_a_rate() -> None:
    for one in generate(writer("quantile"), TEXTS, max_new_tokens=2, deletion_rate=0.0):
        assert one.deleted == 0
    for kind in ("mrt5", "none"):
        with pytest.raises(UserError, match=r"--deletion-rate 0: .* no gate conditioned on a deletion rate"):
            list(generate(writer(kind), TEXTS, deletion_rate=0.0))


@pytest.mark.parametrize(
    ("variant", "fields"),
    [
        *((variant, {"shortening_per": "batch"}) for variant in ("fixed", "random", "cp_3", "bp_gumbel")),
        ("bp_gumbel", {"boundary_sampling": "always"}),
    ],
)
def test_an_output_is_its_own_where_shortening_looks_at_batches(variant: str, fields: dict[str, Any]) -> None:
    model = writer(variant, **fields)
    found = list(generate(model, TEXTS, max_new_tokens=5, hard_delete=True))
    alone = [one for text in TEXTS for one in generate(model, [text], max_new_tokens=5, hard_delete=True)]
    assert [(one.bytes, one.kept) for one in found] == [(one.bytes, one.kept) for one in alone]
    assert all(0 <= one.deleted < 1 for one in found)


def test_a_rate_that_a_gate_has_not_learned_is_generated_at_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for rate, times in ((0.4, 0), (0.93, 1)):
        assert list(generate(writer("quantile"), [], deletion_rate=rate)) == []
        assert caplog.text.count(f"was trained to delete 0 to 80 %; requested: {100 * rate:g} %") == times


@pytest.mark.parametrize(
    "how",
    [{}, {"num_beams": 3, "num_return": 2}, {"sample": True, "num_return": 2, "valid_utf8": True}],
    ids=str,
)
def test_a_score_is_of_the_tokens_up_to_the_end(how: dict[str, Any]) -> None:
    model = writer("mrt5")
    model.lm_head.weight.data /= 8
    found = list(generate(model, TEXTS, max_new_tokens=9, **how))

    ends = 0
    for one in found:
        ids, labels = encode(one.input, add_eos=True), encode(one.bytes, add_eos=len(one.bytes) < 9)
        ends += len(one.bytes) < 9
        with torch.inference_mode():
            ids, labels = torch.from_numpy(ids)[None], torch.from_numpy(labels)[None]
            output = model(ids, labels=labels, hard_delete=True)
        nats = output.logits.log_softmax(-1).gather(-1, labels[..., None]).sum()
        assert one.score == pytest.approx(float(nats), rel=1e-3, abs=1e-4)
        assert (one.kept, one.deleted) == (
            int(output.kept_lengths),
            1 - int(output.kept_lengths) / ids.shape[1],
        )
    assert 0 < ends < len(found) == len(TEXTS) * how.get("num_return", 1)


def test_plain_greedy_decoding_is_left_to_the_loop_for_gpus(own_loop: list[Any]) -> None:
    with fast_paths(True):
        found = [one.bytes for one in generate(writer("mrt5"), TEXTS, max_new_tokens=9)]
    assert len(own_loop) == 1
    assert found == [bytes(i - 3 for i in alone(writer("mrt5"), text, 9, hard_delete=True)) for text in TEXTS]


@pytest.mark.gpu
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"sample": True, "valid_utf8": True}], ids=str)
def test_a_gpu_writes_what_a_cpu_does(tmp_path: Path, how: dict[str, Any], exact_float32: None) -> None:
    model = writer("mrt5")
    wanted = [(one.bytes, one.kept) for one in generate(model, TEXTS, max_new_tokens=9, **how)]
    found = list(generate(model.cuda(), TEXTS, max_new_tokens=9, **how))
    assert [(one.bytes, one.kept) for one in found] == wanted


def test_inputs_are_read_no_further_than_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def endless() -> Iterator[str]:
        while True:
            read.append(1)
            yield f"number {len(read)}"

    found = generate(writer("mrt5"), endless(), max_new_tokens=2, scores=False)
    assert not read
    assert next(found).input == "number 1"
    assert len(read) == writing.WINDOW


def test_bytes_are_taken_as_they_are() -> None:
    (one,) = generate(writer("mrt5"), [b"a\xff"], max_new_tokens=2)

    assert one.input == "a\ufffd"
    with pytest.raises(TypeError, match="str or bytes, not int"):
        list(generate(writer("mrt5"), [3]))  # type: ignore[list-item]
    with pytest.raises(TypeError, match="beams"):
        generate(writer("mrt5"), [], beams=3)


def test_a_run_is_named_by_its_folder_and_its_prompt_is_put_around(tmp_path: Path) -> None:
    task = {"kind": "word_search", "source": {"kind": "files", "path": "gone"}}
    run = make_run(tmp_path, "words", task=task)

    (one,) = generate(run, ["cat"])
    (same,) = generate(str(run), ["cat"], prompt="{line}", device="cpu")
    (other,) = generate(run, ["cat"], prompt="Find {{{word}}}")

    assert (one.input, one.output) == (same.input, same.output) == ("cat", one.output)
    assert other.input == "Find {cat}"
    assert len(one.bytes) <= 16
    with pytest.raises(UserError, match="no place for the input"):
        generate(run, [], prompt="Find")


def test_an_input_that_is_too_long_is_cut() -> None:
    model = writer("mrt5")
    cut, whole = generate(model, ["abcdef", "abc"], input_length=4, max_new_tokens=5)

    assert (cut.truncated, whole.truncated) == (True, False)
    assert (cut.bytes, cut.kept) == (whole.bytes, whole.kept)
    learned = writer("mrt5", has_absolute_position_embeddings=True, max_position_embeddings=40)
    assert next(generate(learned, ["x" * 60])).truncated
    with pytest.raises(UserError, match="has 40 learned positions, and cannot write 41 byte tokens"):
        generate(learned, ["x"], max_new_tokens=41)
    with pytest.raises(UserError, match="has 40 learned positions, and cannot read 41 byte tokens"):
        generate(learned, ["x"], input_length=41)


def test_bf16_is_of_weights(tmp_path: Path) -> None:
    run = make_run(tmp_path, "half")
    seen: list[torch.dtype] = []
    write = Pen.write

    def look(self: Pen, *rest: Any) -> Any:
        seen.append(next(self.model.parameters()).dtype)
        return write(self, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pen, "write", look)
        half, full = (next(generate(run, ["abc"], precision=name)) for name in ("bf16", "fp32"))
    assert seen == [torch.bfloat16, torch.float32]
    assert half.score == pytest.approx(full.score, rel=0.2)
    assert half.score != full.score


def test_a_model_that_was_training_is_not_while_it_writes() -> None:
    model = writer("mrt5", dropout_rate=0.5).train()
    assert [one.output for one in generate(model, TEXTS, max_new_tokens=5)] == [
        one.output for one in generate(writer("mrt5"), TEXTS, max_new_tokens=5)
    ]


@given(st.binary(max_size=30))
def test_escapes_can_be_undone(raw: bytes) -> None:
    text = as_text(raw, escapes=True)
    back, rest = b"", text
    while rest:
        if rest.startswith("\\\\"):
            back, rest = back + b"\\", rest[2:]
        elif rest.startswith("\\x"):
            back, rest = back + bytes.fromhex(rest[2:4]), rest[4:]
        else:
            back, rest = back + rest[0].encode(), rest[1:]
    assert back == raw


def test_how_many_inputs_there_are_is_estimated(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("ab\n" * 900)
    with Source(file, None) as inputs:
        assert inputs.estimate is None
        each = iter(inputs)
        for _ in range(100):
            next(each)
        assert inputs.estimate == 900
        assert len(list(each)) == 800


def test_windows_end_before_a_bad_input() -> None:
    bad = Input("line 4", b"", None, UserError("line 4: bad"))
    inputs = [Input("", b"a"), Input("", b"b"), Input("", b"c"), bad, Input("", b"d")]
    found = windows(inputs, "error", size=2, first=5)

    assert [[index for index, _ in window] for window in (next(found), next(found))] == [[5, 6], [7]]
    with pytest.raises(UserError, match="line 4: bad"):
        next(found)
    assert [len(window) for window in windows(inputs, "skip", size=2)] == [2, 2, 1]
    long = [Input("", b"x" * 2**25)] * 5
    assert [len(window) for window in windows(long, "error")] == [3, 2]


@settings(max_examples=50)
@given(
    st.lists(st.text("a\"',\t\n\r \\é", max_size=6), min_size=1, max_size=4), st.sampled_from(["csv", "tsv"])
)
def test_tables_are_read_as_they_were_written(cells: list[str], kind: Any) -> None:
    import csv
    import io

    names = [f"c{n}" for n in range(len(cells))]
    form = RowFormat(kind, names)
    text = form.head() + form.row(dict(zip(names, cells, strict=True)))
    lines = io.StringIO(text, newline="")

    assert list(csv.reader(lines, delimiter={"csv": ",", "tsv": "\t"}[kind], strict=True)) == [names, cells]


def test_rows_of_other_columns_make_no_table() -> None:
    form = RowFormat("csv", ["a", "b"])
    assert form.row({"b": None, "a": {"x": [1]}}) == '"{""x"": [1]}",\n'
    assert form.row({"a": True}) == "true,\n"
    with pytest.raises(UserError, match="a column 'c' that the first row lacks"):
        form.row({"c": 1})
    assert [format_of(name) for name in ("A.CSV", "b.ndjson", "c", "d.txt", "e.tsv")] == [
        *("csv", "jsonl", "lines", "lines", "tsv")
    ]


def test_batches_hold_what_they_may_and_are_of_like_size() -> None:
    pen = Pen(shared("mrt5"), Options(writing.Decoding(10), batch_tokens=100))
    texts = [Text(n, b"x" * length) for n, length in enumerate([1, 39, 2, 9, 9, 9, 9, 9, 300, 4])]

    sizes = [[len(text.content) for text in batch] for batch in pen._batches(texts)]

    assert sizes == [[300], [39, 9], [9, 9, 9, 9], [4, 2, 1]]
    assert sorted(text.number for batch in pen._batches(texts) for text in batch) == list(range(10))


class Fails:
    """A pen that fails in a way of its own for each text."""

    def write(self, texts: list[Text]) -> Any:
        if texts[0].content == b"no":
            raise UserError("no", "a hint")
        if texts[0].content == b"end":
            os._exit(3)
        return [[text.number] for text in texts]


def failing(device: str) -> Any:
    return Fails()


@pytest.mark.parametrize(
    "how",
    [
        *({"num_beams": 0}, {"num_return": 0}, {"max_new_tokens": 0}),
        *({"batch_tokens": -1}, {"input_length": 0}),
        *({"sample": True, "seed": -1}, {"sample": True, "top_p": 0.0}, {"sample": True, "temperature": 0.0}),
        *({"precision": "fp16"}, {"device": "cpu,cpu"}, {"precision": "bf16"}),
    ],
)
def test_settings_out_of_range_are_refused(how: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"{list(how)[-1]}|a loaded model stays"):
        generate(writer("mrt5"), ["ab"], **how)


def test_what_nobody_says_is_as_the_recipe_evaluates() -> None:
    how = GenerationSection(num_beams=4, max_new_tokens=7, length_penalty=0.5)
    recipes = EvaluationSection(generation=how, hard_delete=False)

    def decided(**given: Any) -> tuple[int | None, float | None, int | None, bool | None]:
        found = Settings(**given).filled(recipes)
        return found.num_beams, found.length_penalty, found.max_new_tokens, found.hard_delete

    assert decided() == (4, 0.5, 7, False)
    assert decided(num_beams=2, hard_delete=True) == (2, 1.0, 7, True)
    assert decided(max_new_tokens=9, length_penalty=2.0, num_return=4) == (4, 2.0, 9, False)
    assert decided(sample=True, num_return=3) == (1, 1.0, 7, False)
    with pytest.raises(UserError, match="--num-return 5: 4 beams cannot return 5"):
        decided(num_return=5)


def test_one_text_is_not_taken_for_its_letters() -> None:
    with pytest.raises(TypeError, match="not one text"):
        generate(writer("mrt5"), "ab")


def test_ctrl_c_does_not_reach_a_process_that_is_starting() -> None:
    with Workers(Fails, ["cpu"]) as workers:
        (process,) = workers._processes
        status = Path(f"/proc/{process.pid}/status").read_text()
    blocked = next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk"))
    assert int(blocked, 16) >> (signal.SIGINT - 1) & 1
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGINT}


def test_windows_go_out_in_turn_and_come_back_in_order_before_an_error_in_reading_them() -> None:
    sent: list[int] = []
    out: list[int] = []

    def reading() -> Iterator[list[Text]]:
        yield from ([Text(n, b"")] for n in range(5))
        raise UserError("the sixth is bad")

    def send(number: int, window: Sequence[Text]) -> int:
        sent.append(number)
        assert len(sent) - len(out) <= 2 and [text.number for text in window] == [number]
        return number

    def receive(number: int) -> Any:
        out.append(number)
        return [number]

    done: list[int] = []
    found = in_turn(reading(), send, receive, 2, done.append)
    assert [next(found) for _ in range(5)] == [[0], [1], [2], [3], [4]]
    with pytest.raises(UserError, match="sixth"):
        next(found)
    assert sent == out == [0, 1, 2, 3, 4] and done == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_what_fails_on_a_device_is_said() -> None:
    with Workers(failing, ["cpu", "cpu"]) as workers:
        windows = [[Text(n, b"")] for n in range(5)]
        assert list(workers.write_all(windows)) == [[[n]] for n in range(5)]
        with pytest.raises(UserError, match="no") as error:
            list(workers.write_all([[Text(0, b"no")]]))
        assert error.value.hint == "a hint"
        with pytest.raises(RunFailed, match=r"the process on cpu ended with code 3"):
            list(workers.write_all([[Text(0, b"end")]]))


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, mrt5cli; assert 'torch' not in sys.modules; assert not hasattr(mrt5cli, 'nothing')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert mrt5cli.generate is generate
