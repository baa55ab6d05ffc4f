"""A training step asks a GPU for nothing: the host runs ahead of it until a logging step.

On a CPU, which is taken for a GPU, operations are counted whose result the host would have to wait for there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_packed_kernels import Waits, by_kernel
from test_trainer import PI, Stream, make_trainer, tiny_model
from torch.utils.data._utils import pin_memory
from transformers import TrainerCallback

from mrt5cli.models.inputs import on_device
from mrt5cli.recipe import LossSection, TwoSidedPIController
from mrt5cli.training import trainer as trainer_module
from mrt5cli.training.stream_loader import stream_loader

pytestmark = pytest.mark.usefixtures("fast")
__all__ = ["by_kernel"]
DAMPED = TwoSidedPIController(kind="pi_two_sided", target_deletion_rate=0.6, k_p=0.1, k_i=0.01, k_d=1.0)


def watched(call: Callable[..., Any], before: Callable[[], None], after: Callable[[], None]) -> Any:
    def watching(*args: Any, **how: Any) -> Any:
        before()
        try:
            return call(*args, **how)
        finally:
            after()

    return watching


@pytest.mark.parametrize("controller", [PI, DAMPED], ids=["pi", "damped"])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_nothing_waits_between_logging_steps(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by_kernel: SimpleNamespace,
    accumulation: int,
    controller: Any,
):
    """Dropout, rows of different lengths, a controller that is due: no operation of a step asks for a value
    or a size that data decides, and no tensor is made of numbers, which would be copied to a GPU."""
    waits = Waits(by_kernel)
    waited: dict[int, int] = {}

    def count() -> None:
        waits.count += not by_kernel.inside

    def host(inside: bool) -> Callable[[], None]:
        return lambda: setattr(by_kernel, "inside", inside)

    for name in ("tensor", "as_tensor"):
        monkeypatch.setattr(torch, name, watched(getattr(torch, name), count, lambda: None))
    for name in ("on_device", "counts"):  # these read a batch where it is, on the host
        call = getattr(trainer_module, name)
        monkeypatch.setattr(trainer_module, name, watched(call, host(True), host(False)))
    for name in ("mrt5", "outputs", "layout"):
        monkeypatch.setattr(f"mrt5cli.models.{name}.hides_nothing", lambda mask: False)  # as on a GPU

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            waited[state.global_step] = waits.count

    model = tiny_model(0.1, attention_dropout_rate=0.0)
    model.set_attn_implementation("triton")
    trainer = make_trainer(
        tmp_path,
        model=model,
        steps=8,
        logging_steps=4,
        accumulation=accumulation,
        loss=LossSection(entropy_coefficient_1=0.1),
        controller=controller,
        callbacks=[Watch()],
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
    )
    with waits:
        trainer.train_from(None)
    assert by_kernel.calls
    assert waited[3] == waited[1] and waited[7] == waited[5]
    assert waited[5] > waited[4]  # a line of metrics, so that the watch does see what is asked


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_come_in_pinned_memory(monkeypatch: pytest.MonkeyPatch, workers: int):
    """Only such copies do not wait; and a loader pins where there is a GPU, with workers and without."""
    pinned: list[str] = []

    def pin(data: Any, device: Any = None) -> Any:
        pinned.extend(data)
        return data

    monkeypatch.setattr(pin_memory, "pin_memory", pin)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    batch = next(iter(stream_loader(Stream(), workers, pin=True)))
    assert {"input_ids", "attention_mask", "labels"} <= set(pinned) and "labels" in batch
    pinned.clear()
    next(iter(stream_loader(Stream(), workers, pin=False)))
    assert not pinned


def test_copies_of_a_batch_do_not_wait():
    asked: list[Any] = []

    class Recorded:
        def to(self, device: Any, non_blocking: bool = False) -> Any:
            asked.append(non_blocking)
            return self

    on_device({"input_ids": Recorded(), "labels": Recorded()}, torch.device("cpu"))  # type: ignore[dict-item]
    assert asked == [True, True]
