"""The deletion controllers for other trainers: a callback for transformers' Trainer, or for a custom loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from mrt5cli.errors import RecipeError, RunFailed, UserError
from mrt5cli.recipe import words
from mrt5cli.recipe.schema import Controller as ControllerSection
from mrt5cli.recipe.shorteners import of_type
from mrt5cli.training.controller import build_controller
from mrt5cli.training.finite import gains, in_any_process, is_finite

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


class DeletionRateController(TrainerCallback, ExportableState):
    """Steers alpha, the weight of the gate loss in a model's `loss`, toward a target deletion rate.

    With a Trainer, just pass it in `callbacks`. The model may be wrapped, adapted or exported; in training
    mode the `loss` that it returns then includes the gate loss. The Trainer's checkpoints contain the
    controller's state, and resuming restores it. Logs receive `deletion_rate`, the mean since the previous
    log, and the last step's `alpha`. All processes share one rate.

    In a custom loop, `attach` it to the model and call `step` after each optimizer step; it can be passed to
    `accelerator.register_for_checkpointing`. `detach` removes it; a Trainer does so at the end of training,
    but not when it is interrupted.

    Args:
        target_deletion_rate: fraction of non-pad source bytes to delete, 0 to 1.
        kind: the controller, by its name in recipes: "pi" (the paper's, section 3.2), "p" (that of its first
            version), or "pi_two_sided", whose alpha may become negative and push back.
        delay: number of optimizer steps before the gate loss and the controller start.
        **settings: other keys of a recipe's `controller`, such as k_p, k_i, k_d, alpha_max and every_steps.

    Attributes:
        deletion_rate: fraction of positions deleted in the last optimizer step, over all processes; None
            before the first step.

    Raises:
        RecipeError: a setting is unknown to this kind, or out of bounds.
        RunFailed: under a Trainer, alpha is not finite when it would be logged, or the weights are not when
            they would be saved. Earlier checkpoints are kept.
    """

    def __init__(
        self,
        target_deletion_rate: float,
        kind: Literal["pi", "p", "pi_two_sided"] = "pi",
        *,
        delay: int = 0,
        **settings: float | str,
    ) -> None:
        if delay < 0:
            raise UserError(f"delay is {delay}", "give a number of optimizer steps, 0 or more")
        given = {"kind": kind, "target_deletion_rate": target_deletion_rate, **settings}
        try:
            self._section = _Settings.model_validate({"controller": given}).controller
        except ValidationError as error:
            found = [(words.dotted(keys[1:]), text) for keys, text in words.problems(error)]
            raise RecipeError("DeletionRateController", found) from None
        self._given = {**given, "delay": delay}
        self._delay = delay
        self._model: Any = None
        self._restart(torch.device("cpu"))

    def _restart(self, device: torch.device) -> None:
        self._controller = build_controller(self._section, _numbers_on(device))
        self._step = 0
        # Deleted and counted positions: of this step in this process; since the last log in all of them.
        self._counts, self._window = torch.zeros(2, device=device), torch.zeros(2, device=device)
        self._of_step: Tensor | None = None
        self._saw = False
        self._nothing = self._used = torch.zeros((), device=device)

    # --- called by the model --------------------------------------------------------------------------------

    @property
    def alpha(self) -> Tensor:
        """The current coefficient of the gate loss, 0-dim, on the model's device."""
        return self._alpha()

    # torch.compile would trace both, and recompile whenever a number changes.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _alpha(self) -> Tensor:
        alpha = self._controller.alpha if self._step >= self._delay else self._nothing
        assert isinstance(alpha, Tensor)
        return alpha

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def count(self, counts: Tensor) -> None:
        """Count a forward pass: (2,), the number of deleted positions and of all non-pad positions."""
        if counts.device != self._counts.device:  # the model was moved after `attach`
            self._move(counts.device)
        counts, self._used, self._saw = counts.detach(), self.alpha, True
        if self._controller.per_micro_batch:
            counts = _over_processes(counts)
            self._steer(counts)
        self._counts = self._counts + counts

    def _move(self, device: torch.device) -> None:
        state = self.state_dict()
        self._restart(device)
        self.load_state_dict(state)

    def _steer(self, counts: Tensor) -> None:
        if self._step >= self._delay and self._controller.due(self._step):
            self._controller.update(counts[0] / counts[1])

    # --- called in a custom loop ----------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> DeletionRateController:
        """Add the gate loss to the loss that the model returns in training mode, and start at step 0.

        Raises:
            UserError: the model contains no MrT5, or one whose gate is not learned or is frozen.
        """
        self.detach()
        # Check an attribute of the class. Its name would miss exported models, whose class is in their own
        # files; an attribute of the instance would match PEFT's wrapper, which forwards reads but not writes.
        found = (part for part in model.modules() if hasattr(type(part), "deletion_control"))
        self._model = next(found, None)
        if self._model is None:
            raise UserError(
                f"DeletionRateController found no MrT5 in {type(model).__name__}",
                "train an MrT5ForConditionalGeneration, or leave the controller out",
            )
        kind = self._model.config.deletion_type
        if not of_type(kind).steered:
            raise UserError(
                f"DeletionRateController needs a learned delete gate; this model's deletion_type is {kind!r}",
                'load it with deletion_type="scaled_sigmoid" for a fresh gate, or leave the controller out',
            )
        if not any(weight.requires_grad for weight in self._model.encoder.shortener.parameters()):
            raise UserError(
                "DeletionRateController cannot steer a delete gate that is frozen",
                'train it: with PEFT, modules_to_save=["delete_gate"]',
            )
        self._restart(next(self._model.parameters()).device)
        self._model.deletion_control = self
        return self

    def step(self) -> None:
        """Record an optimizer step and update alpha.

        Raises:
            UserError: the model has not computed its loss since the previous step.
        """
        if self._model is not None and self._model.deletion_control is not self:
            raise UserError(
                "another DeletionRateController has replaced this one on the model",
                "attach only one to each model",
            )
        if not self._saw:
            raise UserError(
                "DeletionRateController saw no deletion in this step, because the model computed no loss",
                "pass labels in training mode, and minimize the loss that the model returns; a Trainer with "
                "label smoothing or a custom loss function does neither",
            )
        self._saw = False
        if self._controller.per_micro_batch:
            counts = self._counts
        else:
            counts = _over_processes(self._counts)
            self._steer(counts)
        self._window, self._of_step = self._window + counts, counts
        self._counts = torch.zeros_like(counts)
        self._step += 1

    def detach(self) -> None:
        """Remove the gate loss from the model's `loss`."""
        if self._model is not None and self._model.deletion_control is self:
            self._model.deletion_control = None
        self._model = None

    @property
    def deletion_rate(self) -> float | None:
        return None if self._of_step is None else _rate(self._of_step)

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint, as Python numbers."""
        law = dict(self._controller.state_dict())  # a key of existing checkpoints
        return {"law": law, "step": self._step, "window": self._window.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from `state_dict`, after `attach`.

        Raises:
            UserError: the state is that of another kind, or the controller is not attached.
        """
        if self._model is None:
            raise UserError("the controller is not attached to a model", "call attach, then load its state")
        own = self._section.kind
        if state["law"]["kind"] != own:
            raise UserError(
                f"the checkpoint's controller is of kind {state['law']['kind']!r}, but this one is {own!r}",
                "use the controller that the model was trained with",
            )
        self._controller.load_state_dict(state["law"])
        self._step = state["step"]
        self._window = self._window.new_tensor(state["window"])

    # --- called by a Trainer --------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """The entry in the Trainer's trainer_state.json."""
        return {"args": self._given, "attributes": {}, "state": self.state_dict()}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.attach(kwargs["model"])
        # The Trainer restores callbacks only on request, but alpha must never restart at 0.
        saved: Any = state.stateful_callbacks
        saved = saved.get(type(self).__name__) if saved else None
        if state.global_step > 0 and saved is None:
            raise UserError(
                f"the checkpoint of step {state.global_step} was made without a DeletionRateController",
                "resume without one, or start from the checkpoint's weights as a model",
            )
        if state.global_step > 0:
            self.load_state_dict(saved["state"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.step()
        # Check only when the Trainer logs or saves, so that other steps do not wait for the device.
        if control.should_log or control.should_save:
            self._check_finite(kwargs["model"] if control.should_save else None, args.learning_rate)

    def _check_finite(self, model: nn.Module | None, learning_rate: float) -> None:
        """Fail in all processes at once before the Trainer logs or saves numbers that are not finite."""
        lower = gains(self._section, where="")
        found = [
            ("the controller's alpha", self._controller.numbers(), f"lower the gains: {lower}"),
            (
                "the model's weights",
                [] if model is None else model.parameters(),
                f"lower learning_rate ({learning_rate:g} now) or the gains ({lower}), or raise warmup_steps",
            ),
        ]
        for what, tensors, hint in found:
            if in_any_process(not is_finite(tensors), self._counts.device):
                raise RunFailed(f"{what} stopped being finite at or before step {self._step}", hint)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        logs = kwargs.get("logs") or {}
        if "loss" not in logs or not self._window[1]:
            return
        found = {"deletion_rate": _rate(self._window), "alpha": float(self._used)}
        self._window = torch.zeros_like(self._window)
        logs.update(found)  # for later callbacks, such as the one that prints
        state.log_history[-1].update(found)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.detach()


class _Settings(BaseModel):
    controller: ControllerSection


def _numbers_on(device: torch.device) -> Callable[[float], Tensor]:
    # A partial instead of a lambda, because a model is pickled together with its controller.
    return partial(torch.full, (), dtype=torch.float32, device=device)


def _over_processes(counts: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        counts = counts.clone()
        dist.all_reduce(counts)
    return counts


def _rate(counts: Tensor) -> float:
    deleted, counted = counts.tolist()
    return float(deleted / counted) if counted else 0.0
