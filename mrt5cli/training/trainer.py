"""The trainer: transformers' loop with MrT5's loss, its controller, and checkpoints that contain both.

The base class provides the loop, precision, accumulation, distribution, the optimizer and its schedule.
Nothing on the path of a step reads a tensor; sums remain on the device until a logging step.

The loss of an optimizer step is one mean over all its examples, however they are accumulated and distributed
(see `losses`): the units of each part are counted in all micro-batches of all processes before the first
forward pass, and each micro-batch contributes its share. With `loss.average_per: micro_batch`, the
reference's mean of means, all shares are equal.

A line of metrics, one per logging step, contains
    step, loss, cross_entropy   means since the previous line, each part of the loss over its own units, as in
                                a step; nats per target token
    gate_loss                   contribution of gate loss and entropy terms to `loss`, alpha included
    score_loss                  without its coefficient
    deletion_rate, target       fractions of non-pad source positions (0 to 1), over all processes
    kept_length                 mean number of remaining non-pad source positions per row
    alpha                       coefficient of the gate loss in this step
    learning_rate, grad_norm    of this step; the norm before clipping
    bytes_per_second, seconds   non-pad source bytes of all processes; total training time over all sessions
    health                      list of persistent problems, if there are any; see `health`
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from mrt5cli.byte_tokens import IGNORED_LABEL
from mrt5cli.convert.files import write_tokenizer
from mrt5cli.errors import DataLost, RunFailed, UserError
from mrt5cli.models.inputs import on_device
from mrt5cli.models.weights import seal
from mrt5cli.recipe.shorteners import of_config
from mrt5cli.rundir import RunDir
from mrt5cli.tasks.base import Batch, BatchStream
from mrt5cli.text import listed
from mrt5cli.training import lora, sharding
from mrt5cli.training.best import Best
from mrt5cli.training.controller import build_controller
from mrt5cli.training.estimates import saved_bytes
from mrt5cli.training.finite import in_any_process, is_finite, stopped
from mrt5cli.training.losses import PARTS, LossTerms, Window, counts, total_loss
from mrt5cli.training.micro_batches import in_equal_number, micro_batches
from mrt5cli.training.stream_loader import stream_loader
from mrt5cli.training.whole import broken_by, own_state_name, own_states
from mrt5cli.writing import whole_directory, write_json

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    from mrt5cli.models import MrT5ForConditionalGeneration, MrT5Output
    from mrt5cli.recipe import Recipe

LONG_WAIT_SECONDS = 1.0
"""Fetching a step's batches takes longer than this only if the Hub is slow or unreachable."""


class DeletionTrainer(Trainer):
    """Trains one of our models on a stream of batches.

    Args:
        model: the model, already with the weights of the checkpoint to resume from, if any.
        args: see `arguments.training_arguments`.
        stream: yields this process's batches.
        recipe: provides loss, controller, seed, and the training settings that `args` cannot express.
        run: receives metrics and checkpoints; None writes neither.

    Attributes:
        best: tracks the best weights, see `offer`; None if they are not kept.
        stopped_between_steps: the last step was saved because no batches were available for another.
    """

    def __init__(
        self,
        model: MrT5ForConditionalGeneration,
        args: TrainingArguments,
        stream: BatchStream,
        recipe: Recipe,
        *,
        run: RunDir | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, LambdaLR | None] = (None, None),
    ) -> None:
        self.stream = stream
        self.run = run
        self.loss_settings = recipe.loss
        self.settings = settings = recipe.training
        self.best = Best(settings.best_metric, settings.patience) if settings.best_metric else None
        self.threshold = model.config.threshold
        self.own_loss_per_position = of_config(model.config).own_loss_per_position
        super().__init__(
            model=model, args=args, train_dataset=stream, callbacks=callbacks, optimizers=optimizers
        )
        # Otherwise the base class counts the labels of every batch; we count more than labels.
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)
        self.add_callback(_RecipeIntervals())
        self.sharded = settings.sharding == "fsdp" and args.world_size > 1
        if self.sharded:
            sharding.shard(model)
        self.trained = [weight for weight in model.parameters() if weight.requires_grad]
        # torch.full fills on the device; torch.tensor would copy, and make the GPU wait.
        self.controller = build_controller(
            recipe.controller, lambda value: torch.full((), value, dtype=torch.float32, device=args.device)
        )
        # Decides which batches are hard-deleted, identically on all processes.
        self.draws = np.random.default_rng(recipe.seed)
        self.window = Window(args.device)
        self.of_step: Iterator[tuple[Tensor, Tensor]] = iter(())
        self.step_counts = torch.zeros(2, device=args.device)
        self.batches_taken = 0
        self.seconds_before = 0.0
        self.fetching_since = math.inf
        self.stopped_between_steps = False
        self.resumes_its_own = True
        self._talk: dist.ProcessGroup | None = None

    # --- a step -------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Batch]:
        return stream_loader(self.stream, self.settings.data_workers, pin=self.args.device.type == "cuda")

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch] | list[list[Batch]], Tensor | int | None]:
        """Fetch all micro-batches of one optimizer step before anything is computed.

        With `batch_tokens` they form one item of the base class's loop, which needs a fixed number of items.
        If they cannot be fetched, or a signal ends the wait, the run is saved at the last completed step.

        Raises:
            DataLost: they cannot be read, here or in another process.
            KeyboardInterrupt: a signal arrived while waiting.
        """
        self.fetching_since = time.monotonic()
        batches: list[Batch] = []
        items: Tensor | int | None = None
        lost: BaseException | None = None
        try:
            batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        except (UserError, KeyboardInterrupt) as error:
            lost = error
        finally:
            self.fetching_since = math.inf
        if lost is not None and self.args.world_size > 1 and not self.stream.may_fail:
            raise lost  # a worker was killed; the other processes do not know, and would not join in saving
        if not self._lost_by_any(lost is not None):
            if self.settings.batch_tokens is None:
                self.of_step = self._weigh(batches)
                return batches, items
            divided = self._divided(batches[0], self.settings.batch_tokens)
            self.of_step = self._weigh(divided)
            return [divided], items
        step = self.state.global_step
        if self.run is not None and step > 0:
            self.stopped_between_steps = True
            if step not in self.run.saved_steps():
                self._save_checkpoint(self.model)
        if lost is None:
            raise DataLost("another process could not read its training data", passes=True)
        raise DataLost.because_of(lost) if isinstance(lost, UserError) else lost

    def waits_long(self) -> bool:
        """Whether the batches of a step have been awaited for longer than LONG_WAIT_SECONDS."""
        return time.monotonic() - self.fetching_since > LONG_WAIT_SECONDS

    def _lost_by_any(self, lost: bool) -> bool:
        """Whether any process of the group has no batches for the next step."""
        if self.args.world_size == 1 or not self.stream.may_fail:
            return lost
        return bool(self._most(int(lost)))

    def _divided(self, whole: Batch, budget: int) -> list[Batch]:
        """Divide this process's rows of a step into as many micro-batches as every other process has."""
        found = micro_batches(whole, budget)
        found = in_equal_number(found, self._most(len(found)))
        if self.args.device.type == "cuda":
            return [{name: part.pin_memory() for name, part in each.items()} for each in found]
        return found

    def _most(self, number: int) -> int:
        """The maximum of `number` over all processes."""
        if self.args.world_size == 1:
            return number
        if self._talk is None:
            # On the CPU, so that no GPU is synchronized; a process may wait long for its data.
            self._talk = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        most = torch.tensor(number)
        dist.all_reduce(most, op=dist.ReduceOp.MAX, group=self._talk)
        return int(most)

    def _weigh(self, batches: list[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        """The weights (6,) and shares (6,) float32 of the parts of each micro-batch of a step.

        A share is the weight divided by the sum of the weights over the step and all processes.
        """
        weights = torch.ones(len(batches), len(PARTS), dtype=torch.float64)
        if self.loss_settings.average_per == "optimizer_step":
            weights = torch.stack(
                [
                    counts(batch, self.loss_settings, own_loss_per_position=self.own_loss_per_position)
                    for batch in batches
                ]
            )
        if self.args.device.type == "cuda":
            weights = weights.pin_memory()  # makes the copy asynchronous
        weights = weights.to(self.args.device, non_blocking=True)
        whole = weights.sum(dim=0)
        if self.args.world_size > 1:
            dist.all_reduce(whole)
        # A step without any target has a cross-entropy of 0, not NaN.
        shares = (weights / whole.clamp(min=1)).float()
        return zip(weights.unbind(), shares.unbind(), strict=True)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, MrT5Output]:
        """The loss of a single micro-batch; its parts are stored in `self.terms`."""
        probability = self.loss_settings.hard_delete_probability
        hard = probability > 0 and model.training and bool(self.draws.random() < probability)
        output = model(
            **inputs,
            hard_delete=hard,
            output_score_loss=self.loss_settings.score_coefficient > 0,
            score_loss_per=self.loss_settings.score_per,
            # Makes the cross-entropy the mean over the micro-batch's targets, or 0 without any.
            num_items_in_batch=inputs["labels"].ne(IGNORED_LABEL).sum().clamp(min=1),
            use_cache=False,
        )
        self.alpha_used = self.controller.alpha
        self.terms = total_loss(
            output,
            inputs["input_ids"],
            self.loss_settings,
            alpha=self.alpha_used,
            threshold=self.threshold,
            regularized=self.regularized,
        )
        return (self.terms.total, output) if return_outputs else self.terms.total

    @property
    def regularized(self) -> bool:
        """Whether `loss.regularizer_delay` is over; until then there is no gate loss, and no control."""
        return bool(self.state.global_step >= self.loss_settings.regularizer_delay)

    def training_step(
        self, model: nn.Module, inputs: Batch | list[Batch], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward pass of what `get_batch_samples` returns: one micro-batch, or a whole step.

        Replaces the base class's method, which sets all modules to training mode each time, and whose copies
        to a GPU are synchronous.
        """
        if not model.training:
            model.train()
        if not isinstance(inputs, list):
            loss = self._micro_batch_step(model, inputs, ends=self.accelerator.sync_gradients)
        else:
            *before, last = inputs
            with self.accelerator.no_sync(model):
                losses = [self._micro_batch_step(model, each, ends=False) for each in before]
            loss = sum(losses, self._micro_batch_step(model, last, ends=True))
        self.batches_taken += 1
        return loss

    def _micro_batch_step(self, model: nn.Module, inputs: Batch, *, ends: bool) -> Tensor:
        """Forward and backward pass and control; `ends`: this is the last micro-batch of its step."""
        moved = on_device(inputs, self.args.device)
        with self.compute_loss_context_manager():
            self.compute_loss(model, moved)
        weights, shares = next(self.of_step)
        loss = (self.terms.parts * shares).sum()
        # Gradients are averaged over processes, but the shares of all processes sum to 1.
        self.accelerator.backward(loss * self.args.world_size)
        self.window.add(self.terms, weights)
        if self.regularized and self.controller.due(self.state.global_step):
            self._steer(self.terms, ends)
        return loss.detach()

    def _steer(self, terms: LossTerms, step_ends: bool) -> None:
        counts = torch.stack((terms.deleted, terms.counted))
        if not self.controller.per_micro_batch:
            self.step_counts = self.step_counts + counts
            if not step_ends:
                return
            counts, self.step_counts = self.step_counts, torch.zeros_like(counts)
        if self.args.world_size > 1:
            dist.all_reduce(counts)
        self.controller.update(counts[0] / counts[1])

    def _wrap_model(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if not self.sharded:
            return super()._wrap_model(model, *args, **kwargs)
        # With `evaluation_mode`, accelerate only casts to the recipe's precision.
        return sharding.Sharded(self.accelerator.prepare_model(model, False, evaluation_mode=True))

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        # The base class collects the parameters from all modules at every step.
        return sharding.whole(torch.nn.utils.clip_grad_norm_(self.trained, self.args.max_grad_norm))

    def floating_point_ops(self, inputs: Batch | list[Batch]) -> int:
        # The base class estimates this from all parameters at every micro-batch.
        return 0

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """The learning-rate schedule; in a continued run, it starts at the new segment."""
        before = self.settings.continues_from
        scheduler = super().create_scheduler(num_training_steps - before, optimizer)
        if before:
            assert isinstance(scheduler, LambdaLR), "all schedules of recipes are"
            scheduler.lr_lambdas = [partial(_later, each, before) for each in scheduler.lr_lambdas]
        return scheduler

    def _begins_segment(self, checkpoint: str | Path) -> bool:
        """Whether a checkpoint is the end of a finished run that a new segment continues."""
        return 0 < self.settings.continues_from == RunDir.step_of(Path(checkpoint))

    # --- logging ------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Write one line of metrics; the base class's final summary is ignored."""
        if "loss" not in logs:
            return
        row = self._metrics(logs["learning_rate"], logs.get("grad_norm", 0.0))
        if not all(math.isfinite(value) for value in row.values() if value is not None):
            raise self._stopped("the loss or its gradient")
        self.window = Window(self.args.device)
        # Callbacks may add to the row, as `health` does.
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, row)
        if self.run is not None and self.args.should_save:
            self.run.add_metrics(row)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        # Log the last step even if it is not a logging step.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_log = True
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _metrics(self, learning_rate: float, grad_norm: float) -> dict[str, Any]:
        counts_rows = self.loss_settings.average_per == "optimizer_step"
        mean, counted = self.window.means(
            self.args.world_size,
            self.loss_settings.score_coefficient,
            1 if counts_rows else self.args.per_device_train_batch_size,
        )
        seconds, since = self.seconds(), self.window.seconds()
        return {
            "step": self.state.global_step,
            **mean,
            "alpha": float(self.alpha_used),
            "target": self.controller.target,
            "learning_rate": learning_rate,
            "grad_norm": float(grad_norm),
            "bytes_per_second": round(counted / since, 1),
            "seconds": round(seconds, 3),
        }

    def seconds(self) -> float:
        """Seconds spent training so far, over all sessions."""
        return self.seconds_before + time.perf_counter() - self.started

    # --- numbers that are not finite ----------------------------------------------------------------------

    def check_finite(self) -> None:
        """Refuse to save a state that is not finite; all processes call this, and fail together.

        Raises:
            RunFailed: weights, moments, alpha or the loss contain a NaN or an infinity.
        """
        assert self.model is not None
        # A run resumed after its last step has no optimizer.
        states = {} if self.optimizer is None else self.optimizer.state
        moments = (each for state in states.values() for each in state.values())
        state = {
            "the model's weights": self.model.parameters(),
            "the optimizer's moments": (each for each in moments if isinstance(each, Tensor)),
            "the controller's alpha": self.controller.numbers(),
            "the loss": [self.window.sums],
        }
        broken = [name for name, tensors in state.items() if not is_finite(tensors)]
        if in_any_process(bool(broken), self.args.device):
            raise self._stopped(listed(broken) or "another process's share of the training")

    def _stopped(self, what: str) -> RunFailed:
        return stopped(what, self.state.global_step, self.controller, self.window.peaks, self.args)

    # --- checkpoints --------------------------------------------------------------------------------------

    def train_from(self, checkpoint: Path | None) -> None:
        """Train to `max_steps` from the start, or from one of the run's checkpoints."""
        step = 0
        if checkpoint is not None:
            self._load_own_state(checkpoint)
            step = RunDir.step_of(checkpoint)
        self._check_same_step(step)
        # The base class would take one more step, even at the end or without patience left.
        if step >= self.args.max_steps or (self.best is not None and self.best.exhausted):
            return
        if checkpoint is None and self.args.world_size > 1:
            # The processes share their initial weights, but must not share dropout masks.
            torch.manual_seed(self.args.seed + self.args.process_index)
        self.started = self.window.opened = time.perf_counter()
        self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    def _check_same_step(self, step: int) -> None:
        """Refuse processes that resume from different steps, for example because their disks differ."""
        if self.args.world_size == 1:
            return
        ends = torch.tensor([step, -step], device=self.args.device)
        dist.all_reduce(ends, op=dist.ReduceOp.MAX)
        last, first = int(ends[0]), -int(ends[1])
        if first != last:
            raise UserError(
                f"the processes resume from different steps, {first} to {last}: they do not all see the same "
                "valid checkpoints",
                "make the run directory identical on all machines, and repeat the command",
            )

    def _save_checkpoint(self, model: nn.Module | None, trial: object = None) -> None:
        if self.run is None:
            return
        with self._saved_weights(self.run.checkpoint(self.state.global_step), moments=True) as folder:
            self._save_optimizer_and_scheduler(str(folder))
            self._save_rng_state(str(folder))
            if self.settings.lora is not None and self.args.should_save:
                lora.save(self.accelerator.unwrap_model(self.model), folder)
            write_json(folder / own_state_name(self.args.process_index), self._own_state())
            if self.args.should_save:
                self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        if self.args.should_save:
            self.run.prune(self.settings.keep_checkpoints)
        self._wait()

    @contextmanager
    def _saved_weights(self, path: Path, *, moments: bool = False) -> Iterator[Path]:
        """Write the weights into a temporary directory, renamed at the end; `moments`: Adam's will follow."""
        RunDir(path.parents[1]).check_held()
        needs = saved_bytes(self.accelerator.unwrap_model(self.model), moments=moments)
        with whole_directory(path, leader=self.args.should_save, needs=needs) as folder:
            self._wait()
            self.save_model(str(folder), _internal_call=True)
            yield folder
            self._wait()
            if self.args.should_save:
                assert self.run is not None, "checkpoints belong to a run"
                seal(folder, step=self.state.global_step, metrics=self.run.metrics_content())

    def offer(self, value: float) -> bool:
        """Record a validation result, and save the current weights if they are the best so far.

        All processes call this at the same step; the value of the leading one counts.

        Args:
            value: value of `best.metric`.

        Returns:
            Whether these are the best weights so far; afterwards `best.exhausted` tells whether to stop.
        """
        assert self.best is not None, "the recipe sets training.best_metric"
        if self.args.world_size > 1:
            leading = torch.tensor(value, dtype=torch.float64, device=self.args.device)
            dist.broadcast(leading, src=0)
            value = float(leading)
        better = self.best.offer(self.state.global_step, value)
        if better and self.run is not None:
            with self._saved_weights(self.run.best_weights(self.state.global_step)):
                pass
            if self.args.should_save:
                self.run.prune(self.settings.keep_checkpoints)
            self._wait()
        return better

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights into a directory; all processes call this, and the leading one writes.

        Raises:
            RunFailed: the state is not finite, see `check_finite`.
        """
        self.check_finite()
        # The base class would also write its arguments as a pickle, which contains local paths.
        assert output_dir is not None, "the run determines it"
        model, leads, state_dict = self.model, self.args.should_save, None
        assert model is not None
        if self.sharded:
            state_dict = sharding.whole_weights(model, keeps=leads)
        if not leads:
            return
        model = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        if self.settings.lora is not None:
            state_dict = lora.merged(model)
        model.save_pretrained(output_dir, state_dict=state_dict)
        write_tokenizer(model.config, Path(output_dir))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        assert self.optimizer is not None and self.lr_scheduler is not None
        state = sharding.whole_state(self.optimizer, keeps=self.args.should_save)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _wait(self) -> None:
        if self.args.world_size > 1:
            dist.barrier()

    def _own_state(self) -> dict[str, Any]:
        """The state of this process that the base class does not save."""
        return {
            "processes": self.args.world_size,
            "controller": self.controller.state_dict(),
            "hard_delete_draws": self.draws.bit_generator.state,
            "stream": self.stream.state_dict(self.batches_taken),
            "window": self.window.state(),
            "seconds": self.seconds(),
            "best": None if self.best is None else self.best.state_dict(),
        }

    def _load_own_state(self, checkpoint: Path) -> None:
        """Restore the state saved by the same number of processes, or by another number."""
        states, rank = own_states(checkpoint), self.args.process_index
        self.resumes_its_own = len(states) == self.args.world_size
        whose = rank if self.resumes_its_own else 0
        state = states[whose]
        begins = self._begins_segment(checkpoint)
        with broken_by(checkpoint, f"{own_state_name(whose)} does not fit this model and recipe"):
            if begins:
                self.controller.take_over(state["controller"])
            else:
                self.controller.load_state_dict(state["controller"])
            self.draws.bit_generator.state = state["hard_delete_draws"]
            self.batches_taken = RunDir.step_of(checkpoint) * self.args.gradient_accumulation_steps
            self.stream.load_state_dict({**state["stream"], "start_batch": self.batches_taken})
            window = state["window"]
            if not self.resumes_its_own:
                window = Window.dealt_out([each["window"] for each in states], rank)
            self.window = Window(self.args.device, window)
            self.seconds_before = float(state["seconds"])
            if self.best is not None and not (begins and state["best"] is None):
                self.best.load_state_dict(state["best"])
                if begins:
                    self.best.waited = 0

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if self.resumes_its_own:
            with broken_by(Path(checkpoint), "its random states do not fit this process"):
                super()._load_rng_state(checkpoint)
            return
        # Random states of another number of processes cannot be used, so seed new ones.
        entropy = self.args.seed, RunDir.step_of(Path(checkpoint)), self.args.process_index
        set_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Do nothing: the model was loaded from the checkpoint."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        files = f"{OPTIMIZER_NAME} or {SCHEDULER_NAME}"
        assert self.optimizer is not None and self.lr_scheduler is not None
        groups = self.optimizer.param_groups
        fresh = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        with broken_by(Path(checkpoint), f"{files} does not fit this model and recipe"):
            if not self.sharded:
                super()._load_optimizer_and_scheduler(checkpoint)
            else:
                read = partial(torch.load, map_location="cpu", weights_only=True, mmap=True)
                state = read(Path(checkpoint) / OPTIMIZER_NAME)
                self.optimizer.load_state_dict(sharding.shares_of(state, self.optimizer))
                self.lr_scheduler.load_state_dict(read(Path(checkpoint) / SCHEDULER_NAME))
        if self._begins_segment(checkpoint):
            # The moments continue; the learning rate and other settings are those of the new recipe.
            for group, settings in zip(self.optimizer.param_groups, fresh, strict=True):
                group.update(settings)
            self.lr_scheduler.base_lrs = [settings["initial_lr"] for settings in fresh]
            self.lr_scheduler._last_lr = [settings["lr"] for settings in fresh]


def _later(factor: Callable[[int], float], before: int, step: int) -> float:
    """The learning-rate factor of a schedule that starts after `before` steps."""
    return factor(max(0, step - before))


class _RecipeIntervals(TrainerCallback):
    """Applies the recipe's logging and saving intervals; the base class would restore the checkpoint's."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        state.compute_steps(args, state.max_steps)  # type: ignore[no-untyped-call]
