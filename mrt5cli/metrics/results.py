"""Results of evaluations: the numbers of a subset, and the files that `mrt5 evaluate` writes, typed.

Importing this needs neither torch nor numpy, so that whoever only reads results can.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mrt5cli.errors import UserError
from mrt5cli.json_files import read_object

VERSION = 2
"""Of the files. Those of version 1 do not say so, nor which other data or checkpoint they are of."""
TOTAL = "total"

STEP = re.compile(r"step-(\d+)")

Interval = tuple[float, float]
Json = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """Results on one subset (a language, or all of a split), or the total. None is what nobody measured.

    Attributes:
        subset: name of the subset.
        examples: rows seen.
        target_tokens: targets the loss is over, EOS and sentinels included.
        loss: cross-entropy, nats per target token.
        bits_per_byte: the same in bits.
        token_accuracy, sequence_accuracy: teacher-forced, 0 to 1.
        exact_match, f1: of generated answers against the accepted ones, 0 to 1.
        constrained_accuracy: the likeliest of the task's choices is the right one, 0 to 1.
        truncated: sources that were cut to the task's input length.
        exact_match_95, constrained_accuracy_95: Wilson intervals; f1_95: see `counts.mean_interval`.
        token_accuracy_95, sequence_accuracy_95: Wilson intervals. Tokens of one example are not independent,
            so both take the examples as the number of trials; for tokens that is wider than it need be.
        deletion_rate: share of non-pad input positions that are gone, 0 to 1: whose gate is below the
            configured threshold, or, where bytes are pooled, that are not the one left of their segment.
        input_length: mean non-pad positions of an example.
        kept_length: mean positions an example keeps; with soft gates, would keep.
        new_length: the paper's new sequence length: encoder output positions of the batch an example was in,
            i.e. its longest kept row, averaged over examples. Grows with the batch size; soft gates shorten
            nothing.
        gate_precision, gate_recall: deleted letters against those the task's targets do not need; None
            without a gate, or where the task cannot know.
        source_removed_loss, source_removed_token_accuracy, source_removed_sequence_accuracy: the same targets
            with the encoder given a lone EOS. What is not well below that loss makes no use of its input.
        ms_per_example, median_ms_per_example: of a forward pass, when timed; where answers are generated, of
            one that is given the source and the generated answer.
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
    constrained_accuracy: float | None = None
    constrained_accuracy_95: Interval | None = None
    truncated: int = 0

    def number(self, name: str) -> float | None:
        """The number of a metric of the catalog."""
        value: float | None = getattr(self, name)
        return value

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
        return finite(asdict(self))

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Row:
        """What a file holds, of this version or an older one; keys of no meaning here are left out.

        Raises:
            LookupError, TypeError, ValueError: it is no row.
        """
        numbers: Json = {
            field.name: tuple(value) if isinstance(value, list) else value
            for field in fields(cls)
            if (value := tree.get(field.name)) is not None
        }
        words = [name for name, value in numbers.items() if isinstance(value, str) and name != "subset"]
        if words:
            raise TypeError(f"{words[0]} is a text")
        return cls(**numbers | {"subset": str(tree["subset"]), "examples": int(tree["examples"])})


def finite(tree: Mapping[str, Any]) -> Json:
    """The same without NaN and infinities, which are not JSON: null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in tree.items()
    }


@dataclass(frozen=True)
class SavedModel:
    """One model's part of a file of results.

    Attributes:
        source: the checkpoint directory, or the Hub id.
        step: of the run's checkpoint it is, in optimizer steps; None for a finished model.
        calibrated: run at another threshold than the model's own.
        run_ended: when the training ended that made it.
        timed_on: what its times depend on besides itself: device, dtype and threads.
        rows: one a subset, the total last when there are several.
    """

    source: str
    step: int | None
    calibrated: bool
    run_ended: str | None
    timed_on: tuple[Any, ...]
    rows: Sequence[Row]

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> SavedModel:
        """What a file holds; see `Row.from_json`."""
        in_path = STEP.fullmatch(Path(tree["source"]).name)  # where version 1 says it, and nowhere else
        return cls(
            source=tree["source"],
            step=tree["step"] if "step" in tree else int(in_path[1]) if in_path else None,
            calibrated=tree.get("calibration") is not None,
            run_ended=tree.get("run_ended"),
            timed_on=tuple(tree.get(key) for key in ("device_name", "dtype", "threads")),
            rows=[Row.from_json(row) for row in tree["rows"]],
        )

    @property
    def summary(self) -> Row:
        """The total, or the only subset's row."""
        return self.rows[-1]


@dataclass(frozen=True)
class SavedEvaluation:
    """A file of results: some models on one task.

    Attributes:
        task: its kind.
        settings: its section of the recipe, resolved.
        deletion: "hard" or "soft".
        languages: subsets that were asked for; None for all.
        data: what took the place of the task's own source, or None.
        code: version of the code that made it.
    """

    task: str
    settings: Mapping[str, Any]
    split: str
    deletion: str
    batch_size: int
    models: Sequence[SavedModel]
    limit: int | None = None
    constrained: bool = False
    languages: Sequence[str] | None = None
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
            return cls.from_json(tree)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise UserError(
                f"{path} does not hold evaluation results as `mrt5 evaluate` writes them ({what})", hint
            ) from error

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> SavedEvaluation:
        """What a file holds; see `Row.from_json`."""
        if tree.get("version", 1) > VERSION:
            raise ValueError(f"version {tree['version']} is of a newer toolkit")
        known = {field.name for field in fields(cls)} - {"task", "models"}
        return cls(
            task=tree["task"]["kind"],
            settings=tree["task"].get("settings", {}),
            models=[SavedModel.from_json(model) for model in tree["models"]],
            **{name: tree[name] for name in known if name in tree},
        )

    @property
    def of_the_model_itself(self) -> bool:
        """One finished model, as it was trained: at its own threshold, on the task's own data."""
        return self.data is None and all(model.step is None and not model.calibrated for model in self.models)

    @property
    def rows(self) -> Sequence[Row]:
        """Of the first model, which in a run's folder is the run."""
        return self.models[0].rows

    @property
    def timed_on(self) -> tuple[Any, ...]:
        """What times depend on besides the model: device, dtype, threads and batch size."""
        return *self.models[0].timed_on, self.batch_size
