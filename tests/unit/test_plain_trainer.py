"""transformers' own trainers, with a model of ours and nothing else of the toolkit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback, TrainingArguments

from mrt5cli.errors import RunFailed
from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration
from mrt5cli.training.rate_controller import DeletionRateController

DRAW = torch.Generator().manual_seed(1)
ROWS: list[dict[str, Any]] = []
for length, targets in ((9, 6), (7, 2), (5, 5), (9, 1), (3, 6), (8, 3), (6, 4), (4, 6)):
    row = torch.zeros(9, dtype=torch.long)
    row[:length] = torch.randint(3, 259, (length,), generator=DRAW)
    labels = torch.full((6,), -100)
    labels[:targets] = torch.randint(3, 259, (targets,), generator=DRAW)
    ROWS.append({"input_ids": row, "attention_mask": (row != 0).long(), "labels": labels})


def model() -> MrT5ForConditionalGeneration:
    torch.manual_seed(2)
    sizes = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 1}
    return MrT5ForConditionalGeneration(MrT5Config(**sizes, delete_gate_layer=1, dropout_rate=0.0))


def losses(folder: Path, at_once: int) -> list[float]:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=len(ROWS) // at_once,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model(), arguments, train_dataset=ROWS)
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_accumulation_changes_nothing(tmp_path: Path):
    whole = losses(tmp_path, 8)
    assert whole[0] > whole[-1]
    for at_once in (4, 1):
        assert losses(tmp_path, at_once) == pytest.approx(whole, abs=1e-4)


@pytest.mark.parametrize("generate", [False, True])
def test_evaluation_gives_a_loss(generate: bool, tmp_path: Path):
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path),
        predict_with_generate=generate,
        generation_max_length=5,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    one = model()
    trainer = Seq2SeqTrainer(one, arguments, eval_dataset=ROWS)
    assert trainer.label_names == ["labels"]
    batch = {name: torch.stack([row[name] for row in ROWS]) for name in ROWS[0]}
    with torch.no_grad():
        expected = one.eval()(**batch).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("broken", ["alpha", "weights"])
def test_nothing_is_saved_that_is_not_finite(broken: str, tmp_path: Path) -> None:
    """A Trainer shows a NaN of a loss as 0, saves on, and deletes the checkpoints from before."""

    class Break(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2 and broken == "alpha":
                controller._controller.i.fill_(float("inf"))  # type: ignore[attr-defined]

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2 and broken == "weights":
                kwargs["model"].lm_head.weight.data[0, 0] = float("nan")

    controller = DeletionRateController(0.5)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=6,
        save_steps=1,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model(), arguments, train_dataset=ROWS, callbacks=[Break(), controller])
    with pytest.raises(RunFailed, match=f"{broken} stopped being finite at or before step 3") as failed:
        trainer.train()
    assert "gains" in str(failed.value.hint) and "k_p (0.5 now)" in str(failed.value.hint)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    state = json.loads(
        (tmp_path / "checkpoint-2" / "trainer_state.json").read_text(), parse_constant=pytest.fail
    )
    assert "DeletionRateController" in state["stateful_callbacks"]
