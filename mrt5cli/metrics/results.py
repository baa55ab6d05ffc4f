"""Typed results of evaluations: the row of a subset, and the files that `mrt5 evaluate` writes.

Importing this module imports neither torch nor numpy, so that reading results is cheap.
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
"""Version of results files. Version 1 records neither its version nor other data or a checkpoint; before
version 3, `accuracy` was named `constrained_accuracy`, and answers were greedy."""
TOTAL = "total"

Interval = tuple[float, float]
Json = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """Results on one subset (a language, or a complete split), or the total. None means not measured.

    Attributes:
        target_tokens: number of targets in the loss, EOS and sentinels included.
        loss: cross-entropy, nats per target token.
        token_accuracy, sequence_accuracy: teacher-forced accuracies, 0 to 1. Their 95 % Wilson intervals both
            count examples as trials, because the tokens of an example are not independent.
        deletion_rate: share of non-pad input positions deleted, 0 to 1: gate below the configured threshold
            or, if bytes are pooled, all but one position of a segment.
        input_length: mean number of non-pad positions per example.
        kept_length: mean number of positions kept per example; with soft gates, that would be kept.
        new_length: the paper's new sequence length: length of the encoder's output, i.e. the longest kept row
            of an example's batch, averaged over examples. Grows with the batch size; soft gates shorten
            nothing.
        gate_precision, gate_recall: deleted letters against the letters that the targets do not need, 0 to 1;
            None without a gate, or if the task does not know them.
        source_removed_loss: loss on the same targets when the encoder reads a lone EOS. A model whose loss is
            not well below it ignores its input.
        ms_per_example: time of a forward pass; for tasks with generated answers, of a pass over the source
            and the generated answer. The median is over batches.
        accuracy: share of examples whose likeliest choice is right, 0 to 1.
        exact_match, f1: generated answers against the accepted ones, 0 to 1.
        cer, wer: character and word error rate of generated answers, edits divided by the length of the
            reference; may exceed 1.
        chrf, bleu: scores of generated answers, 0 to 100.
        others, others_95: numbers and intervals of custom metrics by name, and of loaded metrics by name, or
            "metric.number" if it has several.
        truncated: number of sources cut to the task's input length.
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
        """The number of a metric, from the fields or from `others`."""
        value: float | None = getattr(self, name, None)
        return self.others.get(name) if value is None else value

    def interval(self, name: str) -> Interval | None:
        """The 95 % interval of a metric; None if it has none."""
        ends: Interval | None = getattr(self, f"{name}_95", None)
        return self.others_95.get(name) if ends is None else ends

    def known(self, name: str) -> float:
        """The number of a metric that was measured."""
        value = self.number(name)
        assert value is not None, f"{name} of {self.subset} was not measured"
        return value

    def without_source(self) -> Row:
        """The source-removed numbers as a separate row; numbers without a meaning there are None."""
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
        """The row in a results file; numbers that are not finite become null."""
        tree: Json = finite(asdict(self))
        return tree


class SavedModel(BaseModel, frozen=True):
    """A model's entry in a results file.

    Attributes:
        source: the checkpoint directory, or the Hub id.
        step: optimizer steps of the run's checkpoint; None for a finished model.
        calibration: calibration of the threshold; None for the model's own threshold.
        run_ended: end time of the training that produced the model.
        device_name, dtype, threads: machine and precision of the evaluation.
        rows: one per subset, the total last if there are several.
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
        """Version 1 records the step only in the checkpoint's path; see `VERSION` for accuracy."""
        if isinstance(tree, dict) and "step" not in tree:
            found = re.fullmatch(r"step-(\d+)", Path(str(tree.get("source", ""))).name)
            tree = {**tree, "step": int(found[1]) if found else None}
        if isinstance(tree, dict) and isinstance(rows := tree.get("rows"), list | tuple):
            tree = {**tree, "rows": [_renamed(row) if isinstance(row, dict) else row for row in rows]}
        return tree


def _renamed(row: Json) -> Json:
    """A row with the current names of its numbers."""
    return {re.sub("^constrained_accuracy", "accuracy", name): value for name, value in row.items()}


class SavedEvaluation(BaseModel, frozen=True):
    """A results file: models on one task.

    Attributes:
        task: kind of the task.
        settings: the task's resolved recipe section.
        commits: commits of the Hub datasets that were read.
        languages: subsets that were evaluated; None for all.
        data: path that replaced the task's own source, or None.
        code: version of the code that wrote the file.
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
        """Read a file written by `mrt5 evaluate`, of this version or an older one.

        Args:
            hint: hint for the error about an invalid file.

        Raises:
            UserError: the file cannot be read, or is not a results file.
        """
        tree = read_object(path, hint)
        if tree.get("version", 1) == 1 and "-data-" in path.name:  # recorded nowhere else
            tree["data"] = "other data"
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            first = error.errors()[0]
            what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise UserError(f"{path} is not a results file of `mrt5 evaluate` ({what})", hint) from error

    @property
    def of_the_model_itself(self) -> bool:
        """Whether these are finished models at their own thresholds, on the task's own data."""
        alone = all(model.step is None and model.calibration is None for model in self.models)
        return self.data is None and alone

    @property
    def rows(self) -> Sequence[Row]:
        """The first model's rows; in a run's folder, the run's."""
        return self.models[0].rows

    @property
    def timed_on(self) -> tuple[str | None, str | None, int | None, int]:
        """Conditions that times depend on: device, dtype, threads and batch size."""
        model = self.models[0]
        return model.device_name, model.dtype, model.threads, self.batch_size
