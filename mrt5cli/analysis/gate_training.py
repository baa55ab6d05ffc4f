"""How a delete gate learns over a run's checkpoints, for tasks that know which bytes can be deleted.

For each class of position: the gate's logits and the gradient that reaches them. Strings are gated softly, as
in training; saturated sigmoids and softmaxes leave little gradient. For comparison, a logistic regression is
fitted to the gate's inputs, in which the gate is linear too.

Legend: n concatenated positions of some strings; D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from mrt5cli.analysis.runs import ExperimentRun, ExperimentRuns
from mrt5cli.byte_tokens import PAD
from mrt5cli.errors import UserError
from mrt5cli.metrics.counts import MARKERS, gate_precision, gate_recall
from mrt5cli.metrics.results import Json

if TYPE_CHECKING:
    from mrt5cli.models import MrT5ForConditionalGeneration
    from mrt5cli.subject import Subject
    from mrt5cli.tasks.base import Batch, Task

KIND = "delete_gate"
EXAMPLES, AT_ONCE = 256, 32
"""Number of test strings over all subsets, and per batch."""
QUANTILES = {"low": 0.1, "median": 0.5, "high": 0.9}
L2 = 1e-3
"""Weight decay of the probe, on standardized states: L2 / 2 times the squared weights."""


@dataclass(frozen=True)
class Positions:
    """Measurements at every position of some strings.

    Attributes:
        ids: (n,) int64.
        can_go: (n,) bool, positions that the target does not need, according to the task.
        deleted: (n,) bool, positions that hard deletion would remove.
        logits: (n,) gate logits; positive ones keep a byte.
        gradients: (n,) gradients of the string's cross-entropy (nats, summed over its targets) with respect
            to the logits.
        states: (n, D) inputs of the gate's linear layer.
        first: (n,) bool, positions in the first half of the strings.
    """

    ids: NDArray[np.int64]
    can_go: NDArray[np.bool_]
    deleted: NDArray[np.bool_]
    logits: NDArray[np.float32]
    gradients: NDArray[np.float32]
    states: NDArray[np.float32]
    first: NDArray[np.bool_]

    @property
    def classes(self) -> dict[str, NDArray[np.bool_]]:
        """(n,) masks of the positions that the target needs, those it does not need, and constant markers."""
        marker = np.isin(self.ids, MARKERS)
        return {"needed": ~self.can_go & ~marker, "not_needed": self.can_go & ~marker, "markers": marker}


def gate_training(runs: ExperimentRuns) -> Json:
    """Measurements of each run with a delete gate at its checkpoints and at its end.

    Raises:
        UserError: no finished run has a delete gate and a task that knows which bytes can be deleted.
    """
    from mrt5cli.subject import load_model

    models: list[Json] = []
    for run in (run for run in runs.trained if run.recipe.model.shortener.kind == KIND):
        task, batches = _strings(runs, run)
        if not batches or task.deletable(batches[0]["input_ids"]) is None:
            continue
        found: list[Json] = []
        for step, subject in sorted(_by_step(run).items()):
            runs.progress(run.title, f"step {step:,}", len(found))
            positions = look(load_model(subject, runs.device), batches, task)
            found.append({"step": step, **by_class(positions), **scores(positions)})
        strings = sum(len(batch["input_ids"]) for batch in batches)
        line = {**run.line(), "task": task.name, "examples": strings, **found[-1]}
        models.append({**line, "checkpoints": found})
    if not models:
        raise UserError(
            f"no finished run of {runs.experiment} has a {KIND} and a task that knows what can be deleted",
            "train one on a diagnostic task, such as vowel_removal",
        )
    return {"models": models}


def _strings(runs: ExperimentRuns, run: ExperimentRun) -> tuple[Task, list[Batch]]:
    from mrt5cli.tasks.base import build_task

    task = build_task(run.recipe.task)
    subsets = task.subsets("test")
    share = max(1, (run.recipe.evaluation.examples if runs.smoke else EXAMPLES) // len(subsets))
    parts = (task.held_out("test", subset, batch_size=AT_ONCE, limit=share) for subset in subsets)
    return task, [batch for part in parts for batch in part]


def _by_step(run: ExperimentRun) -> dict[int, Subject]:
    """A run's models by step; the finished model replaces a checkpoint of the same step."""
    from mrt5cli.subject import history

    meta = run.run.meta()
    end = (meta.get("best") or {}).get("step") or meta.get("step") or run.recipe.training.max_steps
    return {end if one.step is None else one.step: one for one in history(run.subject())}


def look(model: MrT5ForConditionalGeneration, batches: Sequence[Batch], task: Task) -> Positions:
    """Measure a model with a delete gate, in eval mode, on softly gated strings."""
    import torch

    from mrt5cli.models.shorteners.delete_gate import DeleteGate

    gate = cast(DeleteGate, model.encoder.shortener)
    device, half = next(model.parameters()).device, sum(len(batch["input_ids"]) for batch in batches) / 2
    parts, done = [], 0
    for batch in batches:
        out = model(
            **{name: batch[name].to(device) for name in ("input_ids", "attention_mask", "labels")},
            hard_delete=False,
            output_hidden_states=True,
            num_items_in_batch=1,  # a sum, so that no string's gradient depends on the others
        )
        [gradients] = torch.autograd.grad(out.cross_entropy, out.delete_gate_logits)
        states = gate.read(out.encoder_hidden_states[model.config.delete_gate_layer])
        ids = batch["input_ids"].numpy()
        first = np.arange(done, done + len(ids))[:, None] < half
        columns = (
            *(ids, task.deletable(ids, out.delete_gate_output.detach().float().cpu().numpy())),
            ~out.keep_mask.cpu().numpy(),
            *(each.detach().cpu().numpy() for each in (out.delete_gate_logits, gradients, states)),
            np.broadcast_to(first, ids.shape),
        )
        parts.append([column[ids != PAD] for column in columns])
        done += len(ids)
    return Positions(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def by_class(found: Positions) -> Json:
    """Quantiles of each class's logits, and mean absolute gradients of its open (logit > 0) and closed gates.

    Values of an empty class are None.
    """
    logits: Json = {}
    gradients: Json = {}
    for name, mask in found.classes.items():
        of = np.quantile(found.logits[mask], list(QUANTILES.values())).tolist() if mask.any() else None
        logits[name] = of and dict(zip(QUANTILES, of, strict=True))
        gradients[name] = {}
        for state, there in (("open", mask & (found.logits > 0)), ("closed", mask & (found.logits <= 0))):
            mean = float(np.abs(found.gradients[there]).mean()) if there.any() else None
            gradients[name] |= {state: mean, f"{state}_positions": int(there.sum())}
    return {"logits": logits, "gradients": gradients}


def scores(found: Positions) -> Json:
    """Precision, recall and area under the ROC curve of the gate and of the probe, without markers.

    The probe is fitted to the first half of the strings; both are scored on the second half. Undefined scores
    are None: nothing is deleted, or all bytes or none can be deleted.
    """
    byte = ~found.classes["markers"]
    fit, other = byte & found.first, byte & ~found.first
    can_go, ids = found.can_go[other], found.ids[other]
    guessed = probe(found.states[fit], found.can_go[fit], found.states[other])
    nothing = dict.fromkeys(("probe_precision", "probe_recall", "probe_auc"))

    def scored(name: str, gone: NDArray[np.bool_], odds: NDArray[np.floating]) -> Json:
        precision, recall = (of(gone, can_go, ids).value for of in (gate_precision, gate_recall))
        return {f"{name}_precision": precision, f"{name}_recall": recall, f"{name}_auc": area(odds, can_go)}

    gate = scored("gate", found.deleted[other], -found.logits[other])
    return gate | (nothing if guessed is None else scored("probe", guessed > 0, guessed))


def probe(
    states: NDArray[np.float32], can_go: NDArray[np.bool_], others: NDArray[np.float32]
) -> NDArray[np.float64] | None:
    """(m,) log odds that positions with states `others` (m, D) can be deleted.

    A logistic regression is fitted to `states` (n, D) and `can_go` (n,); None if all or none can be deleted.
    The search starts at the least-squares solution for +1 and -1, which is close; the loss is convex.
    """
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    if can_go.all() or not can_go.any():
        return None
    mean, spread = states.mean(axis=0, dtype=np.float64), states.std(axis=0, dtype=np.float64) + 1e-6

    def standard(of: NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(np.pad((of - mean) / spread, ((0, 0), (0, 1)), constant_values=1.0))

    x, y = standard(states), torch.from_numpy(can_go).double()
    shrunk = L2 * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(x.T @ x / len(x) + shrunk, x.T @ (2 * y - 1) / len(x))
    search = torch.optim.LBFGS([weights.requires_grad_()], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        search.zero_grad()
        value = binary_cross_entropy_with_logits(x @ weights, y) + L2 / 2 * (weights @ weights)
        value.backward()
        return value

    search.step(loss)  # type: ignore[no-untyped-call]
    return cast(NDArray[np.float64], (standard(others) @ weights.detach()).numpy())


def area(odds: NDArray[np.floating], can_go: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve of (n,) odds against (n,) labels; None without both labels.

    It is the share of pairs (can be deleted, cannot) in which the first has higher odds; ties count half.
    """
    _, places, counts = np.unique(odds, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    can, cannot = int(can_go.sum()), int((~can_go).sum())
    return float(ranks[can_go].sum() - can * (can + 1) / 2) / (can * cannot) if can and cannot else None
