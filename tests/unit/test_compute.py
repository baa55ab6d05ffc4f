"""Compute counts: the paper's formula against the reference, ours against a profiler."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import GOLDEN
from torch.utils.flop_counter import FlopCounterMode

from mrt5cli.analysis.compute import Sizes, macs, paper_macs
from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration

REFERENCE = json.loads((GOLDEN / "macs/macs.json").read_text())


def test_the_papers_formula():
    assert len(REFERENCE["rows"]) == 162
    for row in REFERENCE["rows"]:
        sizes = Sizes(
            d_model=row["d_model"],
            d_ff=row["d_ff"],
            encoder_layers=row["n_encoder_layers"],
            decoder_layers=row["n_decoder_layers"],
            gate_layer=row["deletion_layer"],
        )
        count = paper_macs(sizes, row["encoder_seq_length"], row["decoder_seq_length"], row["keep_ratio"])
        assert count == row["macs"], row
    for row in REFERENCE["layer_rows"]:
        layer = Sizes(row["d_model"], row["d_ff"], encoder_layers=1, decoder_layers=0, gate_layer=1)
        assert paper_macs(layer, row["seq_len"], 0, 1.0) == row["macs"]


def test_the_papers_curve():
    curve = REFERENCE["relative_curve"]
    counts = [paper_macs(Sizes(), 1024, 189, kept) for kept in curve["keep_ratio"]]
    assert counts == curve["macs"]
    assert [count / counts[-1] for count in counts] == pytest.approx(curve["relative_to_keep_all"])


@pytest.mark.drawn
@pytest.mark.parametrize("hard", [False, True])
def test_what_a_profiler_counts(hard: bool):
    torch.manual_seed(0)
    config = MrT5Config(
        d_model=24, d_ff=40, d_kv=6, num_heads=3, num_layers=4, num_decoder_layers=2, delete_gate_layer=2
    )
    model = MrT5ForConditionalGeneration(config).eval()
    model.encoder.block[2].delete_gate.feed_forward.weight.data.mul_(30)
    model.set_attn_implementation("eager")  # the profiler counts no fused kernel of a CPU
    ids, labels = torch.randint(3, 259, (1, 50)), torch.randint(3, 259, (1, 9))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        out = model(ids, labels=labels, hard_delete=hard)
    kept = out.kept_lengths.tolist() if hard else [50]
    assert (kept[0] < 50) == hard
    gate = 50 * config.d_model
    assert counter.get_total_flops() == 2 * (macs(Sizes.of(config.to_dict()), [50], kept, [9]) + gate)
