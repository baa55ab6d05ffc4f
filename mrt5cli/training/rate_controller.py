"""The deletion controllers for trainers that are not ours: a callback of transformers' Trainer, or a few
calls in a loop of one's own."""

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
    """Steers alpha, the weight of the gate loss in a model's `loss`, until the wanted share is deleted.

    As a callback of a Trainer it needs no more than its place in `callbacks`. The model may be wrapped, have
    adapters or be an exported one: in training mode the `loss` that it returns has the gate loss in it. Its
    state goes into the Trainer's checkpoints, and a resumed training goes on with it. Logs get
    `deletion_rate`, the mean since the log before, and the last step's `alpha`. Processes share one rate.

    In another loop, `attach` it to the model and call `step` after each step of the optimizer;
    `accelerator.register_for_checkpointing` takes it. `detach` takes it off, which a Trainer does at its end,
    but not where it is interrupted.

    Args:
        target_deletion_rate: share of non-pad source bytes to delete, 0 to 1.
        kind: the law, by its name in recipes: "pi" (the paper's, section 3.2), "p" (its first version's), or
            "pi_two_sided", whose alpha may turn negative and push back.
        delay: optimizer steps before the gate loss and the controller set in.
        **settings: other keys of `controller` in a recipe, such as k_p, k_i, k_d, alpha_max and every_steps.

    Attributes:
        deletion_rate: share of positions deleted in the last optimizer step, over all processes; None before
            the first one.

    Raises:
        RecipeError: settings that the law has not, or beyond their bounds.
        RunFailed: in a Trainer, alpha is not finite where it would be logged, or the model's weights are not
            where they would be saved: the checkpoints before stay.
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
        self._law = build_controller(self._section, _numbers_on(device))
        self._step = 0
        # Deleted and counted: of this step, of this process; since the last log, of all.
        self._counts, self._window = torch.zeros(2, device=device), torch.zeros(2, device=device)
        self._of_step: Tensor | None = None
        self._saw = False
        self._nothing = self._used = torch.zeros((), device=device)

    # --- what a model asks for ------------------------------------------------------------------------------

    @property
    def alpha(self) -> Tensor:
        """The coefficient of the gate loss in force now, 0-dim, on the model's device."""
        return self._alpha()

    # torch.compile would look into both, and compile anew whenever a number in here changes.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _alpha(self) -> Tensor:
        alpha = self._law.alpha if self._step >= self._delay else self._nothing
        assert isinstance(alpha, Tensor)
        return alpha

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def count(self, counts: Tensor) -> None:
        """See what a forward pass deletes, (2,): positions deleted, and all that are no padding."""
        if counts.device != self._counts.device:  # the model was moved after `attach`
            self._move(counts.device)
        counts, self._used, self._saw = counts.detach(), self.alpha, True
        if self._law.per_micro_batch:
            counts = _over_processes(counts)
            self._steer(counts)
        self._counts = self._counts + counts

    def _move(self, device: torch.device) -> None:
        state = self.state_dict()
        self._restart(device)
        self.load_state_dict(state)

    def _steer(self, counts: Tensor) -> None:
        if self._step >= self._delay and self._law.due(self._step):
            self._law.update(counts[0] / counts[1])

    # --- in a loop of one's own -----------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> DeletionRateController:
        """Put the gate loss into what the model returns in training mode, and begin at step 0.

        Raises:
            UserError: there is no MrT5 in it, or one without a learned gate, or its gate is frozen.
        """
        self.detach()
        # By what its class has: by its name, an exported model, whose class is of its own files, would be
        # missed; by what it has itself, PEFT's would be found, which hands on questions, but nothing set.
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
        """Take note that the optimizer has made a step.

        Raises:
            UserError: no `loss` of the model's was asked for since the step before.
        """
        if self._model is not None and self._model.deletion_control is not self:
            raise UserError(
                "another DeletionRateController has taken this one's place on the model", "give it one only"
            )
        if not self._saw:
            raise UserError(
                "DeletionRateController saw no deletion in this step: the model was not asked for its loss",
                "pass labels in training mode, and minimise the loss that the model returns; with label "
                "smoothing, or a loss function of its own, a Trainer does neither",
            )
        self._saw = False
        if self._law.per_micro_batch:
            counts = self._counts
        else:
            counts = _over_processes(self._counts)
            self._steer(counts)
        self._window, self._of_step = self._window + counts, counts
        self._counts = torch.zeros_like(counts)
        self._step += 1

    def detach(self) -> None:
        """Take the gate loss out of the model's `loss` again."""
        if self._model is not None and self._model.deletion_control is self:
            self._model.deletion_control = None
        self._model = None

    @property
    def deletion_rate(self) -> float | None:
        return None if self._of_step is None else _rate(self._of_step)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold, as plain numbers."""
        law = dict(self._law.state_dict())
        return {"law": law, "step": self._step, "window": self._window.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, attached to a model by then.

        Raises:
            UserError: it is of another law, or there is no model yet.
        """
        if self._model is None:
            raise UserError("the controller is at no model yet", "attach it, then load its state")
        own = self._section.kind
        if state["law"]["kind"] != own:
            raise UserError(
                f"the checkpoint was made with a controller of kind {state['law']['kind']!r}, and this is "
                f"{own!r}",
                "give the controller that it was trained with",
            )
        self._law.load_state_dict(state["law"])
        self._step = state["step"]
        self._window = self._window.new_tensor(state["window"])

    # --- as a callback --------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What the Trainer keeps of it, in trainer_state.json."""
        return {"args": self._given, "attributes": {}, "state": self.state_dict()}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.attach(kwargs["model"])
        # The Trainer would restore it only if asked to, and nobody wants alpha to begin at 0 again.
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
        # The Trainer has decided by now; between, nothing waits for the device.
        if control.should_log or control.should_save:
            self._check_finite(kwargs["model"] if control.should_save else None, args.learning_rate)

    def _check_finite(self, model: nn.Module | None, learning_rate: float) -> None:
        """End the training, in all processes at once, before the Trainer logs or saves what is not finite."""
        lower = gains(self._section, where="")
        found = [
            ("the controller's alpha", self._law.numbers(), f"lower the gains: {lower}"),
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
        logs.update(found)  # for callbacks that come after this one, such as the one that prints
        state.log_history[-1].update(found)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.detach()


class _Settings(BaseModel):
    controller: ControllerSection


def _numbers_on(device: torch.device) -> Callable[[float], Tensor]:
    # No lambda: a model goes into a pickle with its controller.
    return partial(torch.full, (), dtype=torch.float32, device=device)


def _over_processes(counts: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        counts = counts.clone()
        dist.all_reduce(counts)
    return counts


def _rate(counts: Tensor) -> float:
    deleted, counted = counts.tolist()
    return float(deleted / counted) if counted else 0.0
