"""The baselines of the reference: fixed and random deletion, boundary predictor, strided convolution.

The reference's laws for them mix the rows of a batch; ours are asked for them by name.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, golden_cases, labelled, read_case

from mrt5cli.byte_tokens import EOS
from mrt5cli.models import MrT5Config, load
from mrt5cli.models.shorteners.fixed import SEPARATORS, FixedGate
from mrt5cli.models.shorteners.random import RandomGate, delete_over_batch

STATES = {"atol": 2e-5, "rtol": 1e-4}
LOSS = {"atol": 1e-5, "rtol": 0.0}
AS_THE_REFERENCE = {"shortening_per": "batch", "boundary_sampling": "always"}

GATED = [case for case in golden_cases("fixed", "random") if case.id not in ("fixed-masks", "random-laws")]
POOLED = golden_cases("bpt5", "canine")
MASKS = json.loads((GOLDEN / "cases/fixed/masks.json").read_text())
LAWS = json.loads((GOLDEN / "cases/random/laws.json").read_text())


def test_all_cases_are_here():
    assert len(GATED) == 7
    assert len(POOLED) == 10
    assert (len(MASKS["rows"]), len(LAWS["rows"])) == (75, 36)


def forward(model, tensors, **arguments):
    return model(
        tensors["in.input_ids"],
        attention_mask=tensors.get("in.attention_mask"),
        labels=tensors["in.labels"],
        **arguments,
    )


@pytest.mark.parametrize("attention", ["eager", "sdpa", "packed"])
@pytest.mark.parametrize("path", GATED)
def test_gates(path: Path, attention: str, monkeypatch: pytest.MonkeyPatch):
    case, tensors = read_case(path)
    fields = {key: value for key, value in case["config_overrides"].items() if key != "gate_params"}
    model = load(GOLDEN / case["model"], attn_implementation=attention, **fields, shortening_per="batch")
    expected_gate = tensors["out.delete_gate_output"][..., 0]
    if case["config"]["deletion_type"] == "random":  # its distribution is tested below
        monkeypatch.setattr(RandomGate, "score", lambda *_: (expected_gate, None))
    with torch.no_grad():
        out = forward(model, tensors, hard_delete=case["hard_delete"])
    assert torch.equal(out.keep_mask, tensors["out.keep_mask"])
    assert torch.equal(out.delete_gate_output, expected_gate)
    torch.testing.assert_close(out.logits, tensors["out.logits"], **STATES)
    torch.testing.assert_close(out.loss, tensors["out.loss"], **LOSS)


@pytest.mark.parametrize("per", ["row", "batch"])
@pytest.mark.parametrize("case", MASKS["rows"], ids=lambda case: f"{case['amount']}-{case['batch']}")
def test_fixed_masks(case: dict, per: str):
    gate = FixedGate(MrT5Config(fixed_deletion_amount=case["amount"], shortening_per=per))
    ids, expected = torch.tensor(case["input_ids"]), torch.tensor(case["keep"]).bool()
    if case["batch"] == 1:
        ids, expected = ids[None], expected[None]
    padding = torch.zeros_like(ids, dtype=torch.bool) if per == "batch" else ids == 0
    values, _ = gate.score(torch.zeros(*ids.shape, 1), padding, ids)
    kept = values == 0
    if case["batch"] == 1 or per == "batch":
        assert torch.equal(kept, expected)
        return
    for row in range(len(ids)):  # ours: every row as if it were alone
        alone = ids[row][ids[row] != 0][None]
        values, _ = gate.score(torch.zeros(*alone.shape, 1), alone == 0, alone)
        assert torch.equal(kept[row, : alone.shape[1]], values[0] == 0)
        assert not kept[row, alone.shape[1] :].any()


def test_separators():
    assert sorted([EOS, *SEPARATORS]) == sorted(MASKS["separator_ids"])


@pytest.mark.parametrize("law", LAWS["rows"], ids=lambda law: str(law["numpy_seed"]))
def test_random_law(law: dict):
    rows, length = law["shape"]
    torch.manual_seed(law["torch_seed"])
    deleted = delete_over_batch(law["normal_draw"], torch.zeros(rows, length, dtype=torch.bool))
    if law["normal_draw"] < 0:  # the reference's slice wraps around here; ours deletes nothing
        assert not deleted.any()
        return
    assert deleted.sum(dim=1).tolist() == law["deleted_per_row"]
    assert deleted.flatten().nonzero()[:, 0].tolist() == law["deleted_flat_indices"]


@pytest.mark.parametrize("attention", ["eager", "sdpa", "packed"])
@pytest.mark.parametrize("path", POOLED)
def test_poolings(path: Path, attention: str):
    case, tensors = read_case(path)
    model = load(
        GOLDEN / case["model"],
        attn_implementation=attention,
        **case["config_overrides"],
        **AS_THE_REFERENCE,
    )
    if "torch_seed" in case:
        torch.manual_seed(case["torch_seed"])
    with torch.no_grad():
        out = forward(model, tensors)
    valid = tensors["out.returned_attention_mask"].bool()
    assert torch.equal(out.encoder_attention_mask.bool(), valid)
    assert out.kept_lengths.tolist() == valid.sum(dim=1).tolist() == out.keep_mask.sum(dim=1).tolist()
    expected = tensors["out.encoder_last_hidden_state"]
    torch.testing.assert_close(out.encoder_last_hidden_state[valid], expected[valid], **STATES)
    torch.testing.assert_close(out.logits, tensors["out.logits"], **STATES)
    torch.testing.assert_close(out.loss, tensors["out.loss"], **LOSS)
    if "out.boundary_logits" in tensors:
        torch.testing.assert_close(out.boundary_logits, tensors["out.boundary_logits"], **STATES)
        # A segment starts after each end, and at 0.
        starts = tensors["out.hard_boundaries"].bool().roll(1, dims=1)
        starts[:, 0] = True
        before_end = tensors["out.hard_boundaries"].flip(1).cumsum(1).flip(1) > 0
        assert torch.equal(out.keep_mask, starts & before_end)


@pytest.mark.parametrize("path", golden_cases("bpt5"))
def test_boundary_loss(path: Path):
    case, tensors = read_case(path)
    model = load(GOLDEN / case["model"], **case["config_overrides"], **AS_THE_REFERENCE).train()
    torch.manual_seed(case["torch_seed"])
    out = forward(model, tensors)  # these models have no dropout, so training changes nothing else
    torch.testing.assert_close(out.auxiliary_loss, tensors["out.loss_boundaries"], **LOSS)
    torch.testing.assert_close(out.logits, tensors["out.logits"], **STATES)


def test_straight_through_gradients():
    case, tensors = read_case(GOLDEN / "cases/gradients/bpt5_straight_through.json")
    model = load(GOLDEN / case["model"], **case["config_overrides"], **AS_THE_REFERENCE).train()
    torch.manual_seed(case["torch_seed"])
    out = forward(model, tensors)
    out.loss.backward()  # the case's loss is cross entropy + loss_boundaries
    parameters = dict(model.named_parameters())
    for name, expected in ((k.removeprefix("grad."), v) for k, v in tensors.items() if k.startswith("grad.")):
        limit = 1e-6 + 1e-3 * expected.abs().max().item()
        torch.testing.assert_close(parameters[name].grad, expected, atol=limit, rtol=0, msg=labelled(name))
    for name, norm in case["gradient_norm_of_every_parameter"].items():
        assert parameters[name].grad.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize(
    "path", [c for c in golden_cases("generation") if "bpt5" in c.id or "canine" in c.id]
)
def test_generation(path: Path):
    case, tensors = read_case(path)
    model = load(GOLDEN / case["model"], **case["config_overrides"], **AS_THE_REFERENCE)
    torch.manual_seed(6)  # the case's note; its first draw is the boundaries'
    out = model.generate(
        tensors["in.input_ids"],
        attention_mask=tensors["in.attention_mask"],
        return_dict_in_generate=True,
        output_logits=True,
        **case["generate"],
    )
    for row, safe in enumerate(tensors["out.safe_length_per_row"].tolist()):
        assert out.sequences[row, :safe].tolist() == tensors["out.sequences"][row, :safe].tolist()
    steps = torch.stack(out.logits[:2], dim=1)
    torch.testing.assert_close(steps, tensors["out.step_logits_first2"], **STATES)


@pytest.mark.drawn
def test_decoder_alone():
    case, tensors = read_case(GOLDEN / "cases/t5/decoder_only_baseline.json")
    model = load(GOLDEN / case["model"], deletion_type="source_removed")
    ids = torch.randint(3, 259, (len(tensors["in.labels"]), 17))
    with torch.no_grad():
        out = model(ids, labels=tensors["in.labels"])
    torch.testing.assert_close(out.logits, tensors["out.logits"], **STATES)
    assert out.kept_lengths.tolist() == [1] * len(ids)
