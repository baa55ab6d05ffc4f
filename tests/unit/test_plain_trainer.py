"""transformers' own trainers, with a model of ours and nothing else of the toolkit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration

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
