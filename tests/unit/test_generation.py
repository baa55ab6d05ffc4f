"""Answers a model gives itself: the same at every batch size, for every variant, hard and soft."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig
from variants import KINDS, random_rows, tiny, writer

from mrt5cli.byte_tokens import OFFSET, encode
from mrt5cli.evaluation.evaluate import choose, measure
from mrt5cli.evaluation.options import EvaluationOptions
from mrt5cli.evaluation.timing import Stopwatch
from mrt5cli.generation.decoding import Decoding, generate_answers
from mrt5cli.tasks.base import Task, make_batch

LENGTHS = [5, 23, 9, 9, 31, 2, 14, 40]
HARD = {"hard_delete": True}


@pytest.fixture(params=["transformers' loop", "ours"], autouse=True)
def loop(request: pytest.FixtureRequest) -> None:
    """Everything here holds for either."""
    if request.param == "ours":
        request.getfixturevalue("own_loop")


def sources() -> list[torch.Tensor]:
    # The last one is there for the quantile gate's writer, which answers only that one early.
    return [torch.tensor(row) for row in (*random_rows(LENGTHS, seed=1), random_rows(LENGTHS, seed=2)[1])]


def answers(model: Any, rows: list[torch.Tensor], size: int, deletion: dict[str, Any] = HARD) -> list[str]:
    with torch.inference_mode():
        return generate_answers(model, rows, decoding=Decoding(12), batch_size=size, deletion=deletion)


@pytest.mark.parametrize("deletion", [HARD, {"hard_delete": False}], ids=["hard", "soft"])
@pytest.mark.parametrize("variant", KINDS)
def test_answers_do_not_depend_on_the_batch(variant: str, deletion: dict[str, Any]) -> None:
    model = writer(variant)
    rows = sources()

    alone, three, eight = (answers(model, rows, size, deletion) for size in (1, 3, 8))

    assert alone == three == eight
    assert answers(model, rows[::-1], 3, deletion) == alone[::-1]
    if variant != "source_removed":
        assert len(set(alone)) > 3, "a test of equal answers would show nothing"
        assert len({len(answer) for answer in alone}) > 1, "no answer ends early"


def test_an_answer_is_what_the_model_itself_generates() -> None:
    model = writer("mrt5")
    [row, *_] = sources()

    ids = model.generate(row[None], hard_delete=True, max_new_tokens=12, do_sample=False)[0, 1:]

    text = bytes(int(i) - OFFSET for i in ids if i >= OFFSET).decode()
    assert answers(model, [row], 1) == [text]


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 5.0},
        {"num_beams": 3},
        {"repetition_penalty": 9.0},
        {"max_length": 4},
        {"min_new_tokens": 12},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_a_checkpoints_settings_for_generation_do_not_matter(settings: dict[str, Any]) -> None:
    model = writer("mrt5")
    before = answers(model, sources(), 3)
    model.generation_config.update(**settings)
    own = model.generation_config

    assert answers(model, sources(), 3) == before
    assert model.generation_config is own


def test_a_threshold_reaches_the_encoder() -> None:
    model = writer("mrt5")
    everything = {"hard_delete": True, "deletion_threshold": -1e9}

    assert answers(model, sources(), 3, everything) != answers(model, sources(), 3)
    assert answers(model, sources(), 3, everything) == answers(model, sources(), 8, everything)


class Writes(torch.nn.Module):
    """Generates given ids, whatever it is asked."""

    generation_config = None

    def __init__(self, *ids: list[int]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.ids = ids
        self.seen: list[torch.Tensor] = []

    def generate(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        self.seen.append(input_ids)
        return torch.tensor([[0, *row] for row in self.ids])


def test_what_is_no_text_drops_out_of_an_answer() -> None:
    euro = encode("€").tolist()
    model = Writes([104, 260, *euro, 0, 2, euro[0], 105, 1, 106, 107])

    assert answers(model, [torch.tensor([5, 1])], 1) == ["e€f"]


def test_the_longest_sources_come_first_and_are_padded_least() -> None:
    model = Writes([1], [1])
    done: list[int] = []

    generate_answers(
        model,
        [torch.tensor(row) for row in random_rows([3, 9, 4, 8])],
        decoding=Decoding(2),
        batch_size=2,
        deletion=HARD,
        progress=done.append,
    )

    assert [tuple(batch.shape) for batch in model.seen] == [(2, 9), (2, 4)]
    assert done == [2, 4]


def test_time_is_of_forward_passes_over_the_answers() -> None:
    class Timed(Writes):
        labels: list[torch.Tensor]

        def forward(self, *, labels: torch.Tensor, **_: Any) -> None:
            self.labels = [*getattr(self, "labels", []), labels]

    model = Timed([100, 1, 0], [100, 101, 1])
    watch = Stopwatch(torch.device("cpu"))

    generate_answers(model, sources()[:2], decoding=Decoding(3), batch_size=2, deletion=HARD, watch=watch)

    assert len(model.labels) == 6, "one to warm up, five to measure"
    assert model.labels[0].tolist() == [[100, 1, -100], [100, 101, 1]]
    assert watch.rows == [2]


# --- in an evaluation ---


class Questions(Task):
    """Sources of unequal length; the first accepted answer is the target."""

    name = "questions"
    measures = ("exact_match", "f1")
    answer_length = 8
    texts = ("who", "what is it", "where did they all go", "why", "when was it that it rained", "how")
    accepted = (("ab", "The cab!"), ("b",), ("c d", "x"), ("",), ("北京",), ("e",))

    def subsets(self, split: str) -> list[str]:
        return ["en", "zh"]

    def _of(self, subset: str, limit: int | None) -> list[int]:
        return [place for place in range(6) if (place == 4) == (subset == "zh")][:limit]

    def held_out(
        self, split: str, subset: str, *, batch_size: int, limit: int | None = None
    ) -> Iterator[Any]:
        places = self._of(subset, limit)
        for start in range(0, len(places), batch_size):
            chunk = places[start : start + batch_size]
            rows = [
                (encode(self.texts[place], add_eos=True), encode(self.accepted[place][0], add_eos=True))
                for place in chunk
            ]
            widths = [max(len(row[side]) for row in rows) for side in (0, 1)]
            yield make_batch(
                torch.stack([_padded(row[0], widths[0], 0) for row in rows]).numpy(),
                torch.stack([_padded(row[1], widths[1], -100) for row in rows]).numpy(),
            )

    def references(self, split: str, subset: str, limit: int | None = None) -> list[tuple[str, ...]]:
        return [self.accepted[place] for place in self._of(subset, limit)]

    def truncated(self, split: str, subset: str, limit: int | None = None) -> int:
        return 2 if subset == "en" else 0

    def language_of(self, subset: str) -> str:
        return subset

    def train_stream(self, **_: Any) -> Any:
        raise AssertionError("evaluation never trains")

    describe = example = train_stream


def _padded(ids: Any, width: int, fill: int) -> torch.Tensor:
    return torch.nn.functional.pad(torch.as_tensor(ids), (0, width - len(ids)), value=fill)


class Says(torch.nn.Module):
    """Answers texts from a list: by what is asked."""

    config = SimpleNamespace(threshold=-15.0)
    generation_config = None

    def __init__(self, **answers: str) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.answers = {tuple(encode(q.replace("_", " "), add_eos=True)): a for q, a in answers.items()}

    def generate(self, input_ids: torch.Tensor, max_new_tokens: int, **_: Any) -> torch.Tensor:
        assert max_new_tokens == 8
        said = [
            encode(self.answers.get(tuple(row[row != 0].tolist()), ""), add_eos=True) for row in input_ids
        ]
        width = max(map(len, said))
        return torch.stack([_padded([0, *ids.tolist()], width + 1, 0) for ids in said])

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, **_: Any) -> Any:
        kept = (input_ids != 0).sum(1)
        return SimpleNamespace(
            logits=torch.zeros(*labels.shape, 384),
            delete_gate_output=None,
            keep_mask=None,
            kept_lengths=kept,
            encoder_last_hidden_state=torch.zeros(*input_ids.shape, 4),
        )


SAYS = Says(
    who="cab.", what_is_it="no", where_did_they_all_go="c x", when_was_it_that_it_rained="北京。", how="e"
)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_answers_are_scored_against_all_references(size: int) -> None:
    told = measure(SAYS, Questions(), EvaluationOptions(batch_size=size))
    english, chinese, both = told.rows

    assert told.outcomes["en"].scores["exact_match"].tolist() == [1, 0, 0, 1, 1]
    assert told.outcomes["en"].scores["f1"].tolist() == [1, 0, pytest.approx(2 / 3), 0, 1]
    assert english.exact_match == pytest.approx(3 / 5)
    assert english.f1 == pytest.approx((2 + 2 / 3) / 5)
    assert (chinese.exact_match, chinese.f1) == (0, 0)
    assert both.exact_match == pytest.approx(3 / 6)
    assert both.f1 == pytest.approx((2 + 2 / 3) / 6)
    assert (english.truncated, chinese.truncated, both.truncated) == (2, 0, 2)
    assert english.loss == pytest.approx(5.95, abs=0.01), "teacher-forced, as ever"
    for row in told.rows:
        for name in ("exact_match", "f1"):
            low, high = getattr(row, f"{name}_95")
            assert 0 <= low <= getattr(row, name) <= high <= 1
            assert high - low > 0.2, "so few examples say little, even where all agree"


def test_the_multilingual_rule_knows_the_language() -> None:
    english, chinese, _ = measure(SAYS, Questions(), EvaluationOptions(normalization="multilingual")).rows

    assert (chinese.exact_match, chinese.f1) == (1, 1)
    assert english.exact_match == pytest.approx(3 / 5)


def test_progress_shows_both_passes() -> None:
    seen: list[tuple[str, int]] = []

    options = EvaluationOptions(batch_size=3, subsets=["en"])
    measure(SAYS, Questions(), options, progress=lambda *at: seen.append(at))

    assert seen == [("en", 3), ("en", 5), ("en, answers", 3), ("en, answers", 5)]


def test_a_limit_holds_for_answers_too() -> None:
    (row,) = measure(SAYS, Questions(), EvaluationOptions(subsets=["en"], limit=2)).rows

    assert (row.examples, row.exact_match) == (2, 0.5)


@pytest.mark.parametrize("variant", ["mrt5", "bp_gumbel", "cp_3"])
def test_a_real_model_is_scored_alike_at_every_batch_size(variant: str) -> None:
    model = writer(variant)

    options = [EvaluationOptions(batch_size=size, runtime=size == 3) for size in (1, 3, 8)]
    told = [measure(model, Questions(), of) for of in options]

    for other in told[1:]:
        one, first = (found.outcomes["en"].scores["f1"].tolist() for found in (other, told[0]))
        assert one == first
        for row, first in zip(other.rows, told[0].rows, strict=True):
            assert (row.exact_match, row.f1) == (first.exact_match, first.f1)
            assert row.loss == pytest.approx(first.loss, rel=1e-5)
            assert row.deletion_rate == first.deletion_rate
    assert told[1].rows[0].ms_per_example > 0
    assert told[0].rows[0].ms_per_example is None


# --- choices ---


class Labels(Questions):
    """One of three labels for each source."""

    measures = ("sequence_accuracy",)
    choices = ("0", "1", "2")
    accepted = (("0",), ("2",), ("1",), ("2",), ("0",), ("1",))

    def references(self, split: str, subset: str, limit: int | None = None) -> None:
        return None


@pytest.mark.parametrize("variant", KINDS)
def test_a_choice_is_the_likeliest_target_whatever_the_batch(variant: str) -> None:
    model = tiny(variant, seed=3)
    for block in model.decoder.block:
        block.layer[1].EncDecAttention.o.weight.data *= 20
    task = Labels()

    options = EvaluationOptions(constrained=True, subsets=["en"])
    told = [measure(model, task, replace(options, batch_size=size)) for size in (1, 3, 8)]

    by_hand = []
    with torch.inference_mode():
        for batch in task.held_out("test", "en", batch_size=1):
            losses = [
                model(
                    input_ids=batch["input_ids"],
                    labels=torch.from_numpy(encode(choice, add_eos=True))[None],
                    hard_delete=True,
                ).loss
                for choice in task.choices
            ]
            by_hand.append(
                int(torch.stack(losses).argmin()) == int(batch["labels"][0, 0]) - OFFSET - ord("0")
            )
    for one in told:
        assert one.outcomes["en"].scores["accuracy"].tolist() == by_hand
        (row,) = one.rows
        assert row.accuracy == sum(by_hand) / 5
        assert row.accuracy_95 is not None
        plain = measure(model, task, EvaluationOptions(batch_size=3, subsets=["en"])).rows[0]
        assert (row.loss, row.sequence_accuracy) == (
            pytest.approx(plain.loss, rel=1e-5),
            plain.sequence_accuracy,
        )
        assert (row.deletion_rate, row.kept_length) == (plain.deletion_rate, plain.kept_length)


def test_choices_of_unequal_length_are_compared_as_wholes() -> None:
    model = tiny("none")
    ids = torch.tensor(random_rows([6, 6]))
    with torch.inference_mode():
        encoded = model.encoder(input_ids=ids)
        chosen = choose(model, encoded, ["yes", "y"], 2)
        scores = [
            [
                -model(input_ids=ids[[row]], labels=torch.from_numpy(encode(text, add_eos=True))[None]).loss
                * (len(text) + 1)
                for text in ("yes", "y")
            ]
            for row in range(2)
        ]

    assert chosen.tolist() == [int(two > one) for one, two in scores]


def test_a_longer_choice_is_not_favoured_by_the_mean_of_its_tokens() -> None:
    def flat(encoder_outputs: object, labels: torch.Tensor) -> Any:
        """Every token of every target has one probability; that of "yes" is a little larger."""
        logits = torch.zeros(*labels.shape, 384)
        logits.scatter_(-1, labels[..., None], 2.0 if labels.shape[1] == 4 else 1.9)
        return SimpleNamespace(logits=logits)

    class Flat(Writes):
        forward = staticmethod(flat)

    assert choose(Flat([]), None, ["yes", "y"], 3).tolist() == [1, 1, 1]


def test_the_encoder_runs_once_for_all_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("mrt5")
    calls: list[int] = []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))

    options = EvaluationOptions(batch_size=8, constrained=True, subsets=["en"], source_removed=False)
    measure(model, Labels(), options)

    assert len(calls) == 1


@pytest.mark.parametrize(
    ("asked", "length"), [({}, 13), ({"max_length": 6}, 6), ({"max_length": 6, "max_new_tokens": 8}, 9)]
)
def test_the_length_that_a_call_wants_comes_before_that_of_the_checkpoint(asked: dict, length: int) -> None:
    model = tiny("mrt5")
    model.generation_config = GenerationConfig(
        max_new_tokens=12, pad_token_id=0, eos_token_id=383, decoder_start_token_id=0
    )
    ids = model.generate(torch.full((1, 5), 70), do_sample=False, **asked)
    assert ids.shape == (1, length)
