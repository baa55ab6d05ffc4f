"""Run a model over windows of texts, in batches of similar length.

Letters: B rows, L byte tokens of the longest source, T of an output, R outputs per source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrt5cli.batching import divided
from mrt5cli.byte_tokens import EOS, IGNORED_LABEL, encode, to_bytes
from mrt5cli.errors import UserError
from mrt5cli.generation.calibration import Calibration, calibrate, check_threshold
from mrt5cli.generation.decoding import Decoding, padded, sequences
from mrt5cli.models import MrT5ForConditionalGeneration

INPUT_LENGTH = 1024
"""Default byte tokens of a source if the task is unknown: ByT5's length in pre-training."""
OUTPUT_LENGTH = 256
BATCH_TOKENS = {"cpu": 16_384, "cuda": 131_072}
"""Default token positions per batch, by the kind of device; see `Options`."""
Progress = Callable[[int], object]
WINDOW = 2048
"""Texts that are batched together."""
WINDOW_BYTES = 2**26
"""Maximum bytes of the texts in a window, if they are long."""


@dataclass(frozen=True)
class Options:
    """Everything that determines outputs except the model and its texts.

    Attributes:
        input_length: maximum byte tokens of a source, EOS included, which is kept when a text is cut.
        hard_delete: remove positions, as at inference; False gates softly, as in training.
        threshold: gate value below which a byte is deleted, instead of the model's own; hard deletion only.
        batch_tokens: maximum token positions in a batch: rows, times outputs or beams, times the sum of the
            longest source and the longest possible output.
        scores: also compute the log-probability of each output, in another pass of the decoder.
    """

    decoding: Decoding
    input_length: int = INPUT_LENGTH
    hard_delete: bool = True
    threshold: float | None = None
    batch_tokens: int = BATCH_TOKENS["cpu"]
    scores: bool = True

    @property
    def deletion(self) -> dict[str, bool | float]:
        """Keyword arguments of the encoder."""
        moved = {} if self.threshold is None else {"deletion_threshold": self.threshold}
        return {"hard_delete": self.hard_delete, **moved}


class Written(NamedTuple):
    """One output.

    Attributes:
        raw: the output as bytes, which need not be UTF-8.
        score: log-probability in nats given the source, EOS included: the sum over tokens, not divided by
            their number, of the model's own log-probabilities, whatever temperature, top-p or constraint
            selected them; None if not requested.
        deleted: share of the source's positions that were deleted, EOS included, 0 to 1; with soft gates, the
            share that would be.
        kept: number of positions that remain.
        truncated: whether the source was cut.
    """

    raw: bytes
    score: float | None
    deleted: float
    kept: int
    truncated: bool


class Text(NamedTuple):
    """A source text, and the number that seeds its samples."""

    number: int
    content: bytes


class Pen:
    """A model that generates outputs for texts, on one device.

    Args:
        model: put in eval mode.
        name: name of the model in messages.

    Raises:
        UserError: the model does not support these lengths or a threshold.
    """

    def __init__(
        self, model: MrT5ForConditionalGeneration, options: Options, name: str = "the model"
    ) -> None:
        model.train(False)
        self.model, self.options, self.name = model, options, name
        self.device = next(model.parameters()).device
        if options.threshold is not None:
            check_threshold(model.config, name, options.threshold)
        positions = model.config.max_position_embeddings
        if model.config.has_absolute_position_embeddings:
            for what, length in (
                ("read", options.input_length),
                ("write", options.decoding.max_new_tokens),
            ):
                if length > positions:
                    raise UserError(
                        f"{name} has {positions} learned positions, and cannot {what} {length:,} byte tokens",
                        f"use at most {positions}",
                    )

    def threshold_for(self, rate: float, texts: Sequence[Text]) -> Calibration:
        """The threshold that deletes a share of the positions of these texts.

        Raises:
            UserError: the model has no learned gate.
        """
        batches = ([self._ids(text)[0] for text in batch] for batch in self._batches(texts))
        given = (padded(rows, torch.device("cpu")) for rows in batches)
        return calibrate(self.model, given, [rate], self.name)[0]

    def move_threshold(self, threshold: float) -> None:
        """Use another threshold from now on."""
        self.options = replace(self.options, threshold=threshold)

    def write_all(
        self, windows: Iterable[Sequence[Text]], progress: Progress = lambda done: None
    ) -> Iterator[list[list[Written]]]:
        """`write` for each window; `progress` is called with the total number of texts done."""
        before = 0
        for window in windows:
            yield self.write(window, lambda done: progress(before + done))  # noqa: B023  # called at once
            before += len(window)

    def write(self, texts: Sequence[Text], progress: Progress = lambda done: None) -> list[list[Written]]:
        """R outputs for each text, beams best first; no output depends on other texts.

        Args:
            progress: called with the number of texts done so far.
        """
        found: dict[int, list[Written]] = {}
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.inference_mode():
            for batch in self._batches(texts):
                torch.manual_seed(self.options.decoding.seed)  # shorteners may sample
                found |= zip((text.number for text in batch), self._write(batch), strict=True)
                progress(len(found))
        return [found[text.number] for text in texts]

    def _ids(self, text: Text) -> tuple[Tensor, bool]:
        """The source (L,) of a text, and whether it was cut."""
        most = self.options.input_length - 1
        return torch.from_numpy(encode(text.content[:most], add_eos=True)), len(text.content) > most

    def _batches(self, texts: Sequence[Text]) -> Iterator[list[Text]]:
        """Batches of similar length, the longest first; single texts if the shortener mixes rows."""
        decoding = self.options.decoding
        together = max(decoding.num_beams, decoding.num_return)
        ordered = sorted(texts, key=lambda text: -len(text.content))
        sources = [min(len(text.content) + 1, self.options.input_length) for text in ordered]
        targets = [decoding.max_new_tokens] * len(ordered)
        shortener = self.model.encoder.shortener
        # No output may depend on other inputs, whatever the shortener.
        alone = shortener is not None and shortener.sees_batch
        for rows in divided(sources, targets, 1 if alone else self.options.batch_tokens // together):
            yield ordered[rows]

    def _write(self, texts: Sequence[Text]) -> list[list[Written]]:
        options, decoding = self.options, self.options.decoding
        rows, cut = zip(*map(self._ids, texts), strict=True)
        given: dict[str, Any] = padded(rows, self.device)
        lengths = [len(row) for row in rows]
        encoded = self.model.encoder(**given, **options.deletion, real_bytes=sum(lengths))
        kept = lengths if encoded.kept_lengths is None else encoded.kept_lengths.tolist()
        given = {"encoder_outputs": encoded, "attention_mask": given["attention_mask"]}
        found = sequences(self.model, dict(given), decoding, [text.number for text in texts])
        several = decoding.num_return
        scores = self._scores(given, found, several) if options.scores else [None] * len(found)
        written = [to_bytes(ids) for ids in _until_end(found.cpu().numpy())]
        return [
            [
                Written(
                    written[n], scores[n], 1 - int(kept[row]) / int(lengths[row]), int(kept[row]), cut[row]
                )
                for n in range(row * several, (row + 1) * several)
            ]
            for row in range(len(texts))
        ]

    def _scores(self, given: dict[str, Any], found: Tensor, several: int) -> list[float | None]:
        """The scores of outputs (B R, T); see `Written`."""
        if several > 1:
            _, given = self.model._expand_inputs_for_generation(several, True, None, **given)
        ends = (found == EOS).cumsum(dim=1)
        counts = (ends == 0) | ((ends == 1) & (found == EOS))
        labels = found.masked_fill(~counts, IGNORED_LABEL)
        logits = self.model(**given, labels=labels, use_cache=False).logits.float()
        nats = logits.log_softmax(-1).gather(-1, found[..., None])[..., 0]
        scores: list[float | None] = nats.masked_fill(~counts, 0).double().sum(dim=1).tolist()
        return scores


def _until_end(found: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Each row of ids up to its EOS."""
    for row in found:
        ends = np.flatnonzero(row == EOS)
        yield row[: ends[0]] if len(ends) else row
