"""Results of evaluations: the numbers of a subset, and the files that `mrt5 evaluate` writes, typed.

Importing this needs neither torch nor numpy, so that whoever only reads results can.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasPath, BaseModel, Field, ValidationError, model_validator

from mrt5cli.errors import UserError
from mrt5cli.json_files import finite, read_object

VERSION = 3
"""Of the files. Those of version 1 do not say so, nor which other data or checkpoint they are of; before 3
what is now `accuracy` was called `constrained_accuracy`, and answers were greedy."""
TOTAL = "total"

Interval = tuple[float, float]
Json = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """Results on one subset (a language, or all of a split), or the total. None is what nobody measured.

    Attributes:
        target_tokens: targets the loss is over, EOS and sentinels included.
        loss: cross-entropy, nats per target token.
        token_accuracy, sequence_accuracy: teacher-forced, 0 to 1. Their 95 % Wilson intervals both take the
            examples as the number of trials: tokens of one example are not independent.
        deletion_rate: share of non-pad input positions that are gone, 0 to 1: whose gate is below the
            configured threshold, or, where bytes are pooled, that are not the one left of their segment.
        input_length: mean non-pad positions of an example.
        kept_length: mean positions an example keeps; with soft gates, would keep.
        new_length: the paper's new sequence length: encoder output positions of the batch an example was in,
            i.e. its longest kept row, averaged over examples. Grows with the batch size; soft gates shorten
            nothing.
        gate_precision, gate_recall: deleted letters against those the task's targets do not need; None
            without a gate, or where the task cannot know.
        source_removed_loss: of the same targets with the encoder given a lone EOS. What is not well below
            that loss makes no use of its input.
        ms_per_example: of a forward pass, when timed; where answers are generated, of one that is given the
            source and the generated answer. The median is that of the batches.
        accuracy: the likeliest of the task's choices is the right one, 0 to 1.
        exact_match, f1: of generated answers against the accepted ones, 0 to 1.
        cer, wer: character and word error rate of generated answers, edits by the length of the reference,
            which may be above 1.
        chrf, bleu: of generated answers, 0 to 100.
        others, others_95: of metrics of the user's own, by their names, and of metrics that are loaded, by
            the metric's name, or "metric.number" where it has several.
        truncated: sources that were cut to the task's input length.
    """

    subset: str
    examples: int
    target_tokens: int = 0
    loss: float | None = None
    bits_per_byte: float | None = None
    token_accuracy: float | None = None
    sequence_accuracy: float | None = None
    token_accuracy_95: Interval | None = None
    sequence_accuracy_95: Interval | None = None
    deletion_rate: float | None = None
    input_length: float | None = None
    kept_length: float | None = None
    new_length: float | None = None
    gate_precision: float | None = None
    gate_recall: float | None = None
    source_removed_loss: float | None = None
    source_removed_token_accuracy: float | None = None
    source_removed_sequence_accuracy: float | None = None
    ms_per_example: float | None = None
    median_ms_per_example: float | None = None
    exact_match: float | None = None
    exact_match_95: Interval | None = None
    f1: float | None = None
    f1_95: Interval | None = None
    accuracy: float | None = None
    accuracy_95: Interval | None = None
    cer: float | None = None
    cer_95: Interval | None = None
    wer: float | None = None
    wer_95: Interval | None = None
    chrf: float | None = None
    chrf_95: Interval | None = None
    bleu: float | None = None
    bleu_95: Interval | None = None
    others: Mapping[str, float | None] = field(default_factory=dict)
    others_95: Mapping[str, Interval | None] = field(default_factory=dict)
    truncated: int = 0

    def number(self, name: str) -> float | None:
        """The number of a metric of the catalog, or one of the others."""
        value: float | None = getattr(self, name, None)
        return self.others.get(name) if value is None else value

    def interval(self, name: str) -> Interval | None:
        """Its 95 % interval, where it has one."""
        ends: Interval | None = getattr(self, f"{name}_95", None)
        return self.others_95.get(name) if ends is None else ends

    def known(self, name: str) -> float:
        """The number of a metric that was measured."""
        value = self.number(name)
        assert value is not None, f"{name} of {self.subset} was not measured"
        return value

    def without_source(self) -> Row:
        """The source-removed numbers as a row of their own; what has no meaning then is None."""
        loss = self.source_removed_loss
        return Row(
            self.subset,
            self.examples,
            self.target_tokens,
            loss,
            None if loss is None else loss / math.log(2),
            self.source_removed_token_accuracy,
            self.source_removed_sequence_accuracy,
        )

    def to_json(self) -> Json:
        """What a file holds of it; numbers that are not finite become null."""
        tree: Json = finite(asdict(self))
        return tree


class SavedModel(BaseModel, frozen=True):
    """One model's part of a file of results.

    Attributes:
        source: the checkpoint directory, or the Hub id.
        step: of the run's checkpoint it is, in optimizer steps; None for a finished model.
        calibration: to another threshold than the model's own; None at that.
        run_ended: when the training ended that made it.
        rows: one a subset, the total last when there are several.
    """

    source: str
    step: int | None = None
    calibration: Json | None = None
    run_ended: str | None = None
    device_name: str | None = None
    dtype: str | None = None
    threads: int | None = None
    rows: tuple[Row, ...]

    @model_validator(mode="before")
    @classmethod
    def _of_older_versions(cls, tree: object) -> object:
        """Version 1 says the step in the path of the checkpoint only; see `VERSION` for accuracy."""
        if isinstance(tree, dict) and "step" not in tree:
            found = re.fullmatch(r"step-(\d+)", Path(str(tree.get("source", ""))).name)
            tree = {**tree, "step": int(found[1]) if found else None}
        if isinstance(tree, dict) and isinstance(rows := tree.get("rows"), list | tuple):
            tree = {**tree, "rows": [_renamed(row) if isinstance(row, dict) else row for row in rows]}
        return tree


def _renamed(row: Json) -> Json:
    """A row with the names that its numbers have now."""
    return {re.sub("^constrained_accuracy", "accuracy", name): value for name, value in row.items()}


class SavedEvaluation(BaseModel, frozen=True):
    """A file of results: some models on one task.

    Attributes:
        task: its kind.
        settings: its section of the recipe, resolved.
        commits: of the Hub datasets that were read.
        languages: subsets that were evaluated; None for all.
        data: what took the place of the task's own source, or None.
        code: version of the code that made it.
    """

    version: Literal[1, 2, 3] = 1
    task: str = Field(validation_alias=AliasPath("task", "kind"))
    settings: Json = Field(default_factory=dict, validation_alias=AliasPath("task", "settings"))
    commits: dict[str, str] = Field(default_factory=dict, validation_alias=AliasPath("task", "commits"))
    split: str
    deletion: Literal["hard", "soft"]
    batch_size: int
    models: tuple[SavedModel, ...]
    limit: int | None = None
    constrained: bool = False
    normalization: str | None = None
    generation: Json | None = None
    languages: tuple[str, ...] | None = None
    data: str | None = None
    code: str | None = None

    @classmethod
    def read(cls, path: Path, hint: str | None = None) -> SavedEvaluation:
        """The file that `mrt5 evaluate` wrote, in this version of the toolkit or an older one.

        Args:
            hint: what to do about a file that holds something else.

        Raises:
            UserError: it cannot be read, or holds something else.
        """
        tree = read_object(path, hint)
        if tree.get("version", 1) == 1 and "-data-" in path.name:  # which said so nowhere else
            tree["data"] = "other data"
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            first = error.errors()[0]
            what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise UserError(
                f"{path} does not hold evaluation results as `mrt5 evaluate` writes them ({what})", hint
            ) from error

    @property
    def of_the_model_itself(self) -> bool:
        """One finished model, as it was trained: at its own threshold, on the task's own data."""
        alone = all(model.step is None and model.calibration is None for model in self.models)
        return self.data is None and alone

    @property
    def rows(self) -> Sequence[Row]:
        """Of the first model, which in a run's folder is the run."""
        return self.models[0].rows

    @property
    def timed_on(self) -> tuple[str | None, str | None, int | None, int]:
        """What times depend on besides the model: device, dtype, threads and batch size."""
        model = self.models[0]
        return model.device_name, model.dtype, model.threads, self.batch_size
