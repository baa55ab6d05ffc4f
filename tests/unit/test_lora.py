"""LoRA by PEFT: what it trains, what it saves, and that nothing is another number once it is merged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from other_trainers import by_transformers, new_model
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments
from variants import LEARNED_GATES, tiny

from mrt5cli.errors import UserError
from mrt5cli.models import MrT5ForConditionalGeneration, load
from mrt5cli.models.fast.switch import fast_paths
from mrt5cli.models.shorteners import SHORTENERS
from mrt5cli.recipe import LoraSection
from mrt5cli.rundir import resolve_model
from mrt5cli.training import lora
from mrt5cli.training.rate_controller import DeletionRateController

# PEFT asks transformers 5.23 by a name that this deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

DRAW = torch.Generator().manual_seed(3)
MASK = (torch.arange(24) < torch.tensor([[24], [17], [9]])).long()
IDS = torch.randint(3, 259, (3, 24), generator=DRAW) * MASK
LABELS = torch.randint(3, 259, (3, 7), generator=DRAW)
BATCH = {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS}
EVERY = ["q", "k", "v", "o", "wi_0", "wi_1", "wo", "lm_head"]


@pytest.fixture(params=[True, False], ids=["fast", "plain"])
def paths(request: pytest.FixtureRequest) -> Iterator[None]:
    with fast_paths(request.param):
        yield


def config(**fields: Any) -> LoraConfig:
    given = {"target_modules": ["q", "v"], "modules_to_save": ["delete_gate"], **fields}
    return LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, **given)


def step(model: Any, optimizer: torch.optim.Optimizer) -> None:
    found = model(**BATCH)
    optimizer.zero_grad()
    (found.loss + 0.1 * found.delete_gate_output.mean()).backward()
    optimizer.step()


def train(model: Any) -> None:
    """Some steps, after which changes change something, and gates delete other bytes than before."""
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.03)
    model.train()
    for _ in range(4):
        step(model, optimizer)
    model.eval()


@torch.no_grad()
def outputs(model: Any) -> dict[str, Any]:
    soft, hard = (model(**BATCH, hard_delete=each) for each in (False, True))
    ways = {"greedy": {}, "beams": {"num_beams": 3}}
    given = {"input_ids": IDS, "attention_mask": MASK, "hard_delete": True, "max_new_tokens": 6}
    generated = {name: model.generate(**given, **way) for name, way in ways.items()}
    assert hard.encoder_last_hidden_state.shape[1] == int(hard.kept_lengths.max()) < IDS.shape[1]
    return {"soft": soft.logits, "hard": hard.logits, "kept": hard.keep_mask, **generated}


def assert_same(found: dict[str, Any], expected: dict[str, Any], *, tolerance: float = 0.0) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


# --- by PEFT alone ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("paths")
@pytest.mark.parametrize("targets", [["q", "v"], "all-linear"], ids=["q, v", "all"])
@pytest.mark.parametrize("softmax1", [True, False])
@pytest.mark.parametrize("attention", ["eager", "packed"])
def test_it_trains_saves_merges_and_deletes(attention: str, softmax1: bool, targets: Any, tmp_path: Path):
    tiny("mrt5", use_softmax1=softmax1).save_pretrained(tmp_path / "base")
    base = load(tmp_path / "base", attn_implementation=attention)
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    model = get_peft_model(base, config(target_modules=targets))
    unchanged = outputs(model)
    train(model)

    trained = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert trained == {
        name
        for name, _ in model.named_parameters()
        if ".lora_" in name or ".delete_gate.modules_to_save." in name
    }
    assert all(weight.grad.any() for weight in model.parameters() if weight.grad is not None)
    frozen = {
        name.removeprefix("base_model.model.")
        .replace(".base_layer.", ".")
        .replace(".original_module.", "."): weight
        for name, weight in model.state_dict().items()
        if ".lora_" not in name and ".modules_to_save." not in name
    }
    assert frozen.keys() == before.keys() and all(torch.equal(frozen[name], before[name]) for name in before)
    expected = outputs(model)
    assert not torch.equal(expected["kept"], unchanged["kept"])
    with model.disable_adapter():
        assert_same(outputs(model), unchanged)

    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(
        load(tmp_path / "base", attn_implementation=attention), tmp_path / "adapter"
    )
    assert_same(outputs(again.eval()), expected)

    merged = again.merge_and_unload()
    assert type(merged) is MrT5ForConditionalGeneration
    assert_same(outputs(merged), expected, tolerance=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    assert {*load_file(tmp_path / "merged/model.safetensors")} == {
        *load_file(tmp_path / "base/model.safetensors")
    }
    assert_same(outputs(load(tmp_path / "merged", attn_implementation=attention)), outputs(merged))


@pytest.mark.usefixtures("paths")
def test_packed_rows_and_scores_written_out_agree_with_adapters():
    base = tiny("mrt5")
    model = get_peft_model(base, config(target_modules=EVERY[:-1]))
    train(model)
    found = {}
    for attention in ("eager", "sdpa", "packed"):
        base.set_attn_implementation(attention)
        found[attention] = outputs(model)
    assert_same(found["sdpa"], found["eager"], tolerance=1e-5)
    assert_same(found["packed"], found["eager"], tolerance=1e-5)


@pytest.mark.usefixtures("fast")
@torch.no_grad()
def test_adapters_count_where_a_layer_is_wide_enough_for_the_faster_library():
    """oneDNN multiplies by the weights themselves, and activates within the products."""
    model = tiny("none", d_model=512, d_ff=1024, d_kv=64, num_heads=16)
    plain = model(**BATCH).logits
    changed = get_peft_model(model, config(target_modules=EVERY[:-1], modules_to_save=None))
    for name, weight in changed.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight, std=0.05)
    found = changed(**BATCH).logits
    with fast_paths(False):
        expected = changed(**BATCH).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found - plain).abs().max() > 0.1


@pytest.mark.parametrize("variant", LEARNED_GATES)
def test_every_gate_that_learns_is_trained_whole(variant: str):
    base = tiny(variant)
    model = get_peft_model(base, config(modules_to_save=[SHORTENERS[base.config.deletion_type].name])).train()
    found = model(**BATCH)
    (found.loss + found.delete_gate_output.mean()).backward()
    whole = [weight for name, weight in model.named_parameters() if ".modules_to_save." in name]
    assert whole and all(weight.grad is not None and weight.grad.any() for weight in whole)


def test_transformers_trainer_trains_it_however_batches_accumulate(tmp_path: Path):
    rows = [{name: tensor[index] for name, tensor in BATCH.items()} for index in (0, 1, 2, 1)]

    def losses(at_once: int) -> list[float]:
        model = get_peft_model(tiny("mrt5"), config(init_lora_weights=True))
        arguments = TrainingArguments(
            output_dir=str(tmp_path / str(at_once)),
            max_steps=3,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=4 // at_once,
            learning_rate=1e-2,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(model, arguments, train_dataset=rows)
        trainer.train()
        return [row["loss"] for row in trainer.state.log_history if "loss" in row]

    whole = losses(4)
    assert whole[0] > whole[-1] and losses(1) == pytest.approx(whole, abs=1e-4)
    written = {path.name for path in (tmp_path / "4/checkpoint-3").iterdir()}
    assert "adapter_model.safetensors" in written and "model.safetensors" not in written


def test_a_controller_steers_it_as_it_does_a_model_of_ours():
    def trained(model: Any) -> list[tuple[float, float]]:
        control = DeletionRateController(0.7, kind="pi", k_p=1.0, k_i=0.02)
        trainer = by_transformers(Trainer, 1, model, control, max_steps=8, learning_rate=1e-2)
        return [(line["loss"], line["alpha"]) for line in trainer.state.log_history if "loss" in line]

    base, inside = new_model(), new_model()
    torch.manual_seed(1)
    lora.add_lora(inside, LoraSection(rank=4))
    torch.manual_seed(1)
    found = trained(get_peft_model(base, config(lora_alpha=16)))
    assert found == trained(inside) and found[-1][1] > 0 and base.deletion_control is None


def test_an_adapter_is_no_model_and_says_what_to_do(tmp_path: Path):
    tiny("mrt5").save_pretrained(tmp_path / "base")
    model = get_peft_model(load(tmp_path / "base"), config())
    model.save_pretrained(tmp_path / "adapter")
    for refused in (load, resolve_model):
        with pytest.raises(UserError, match="adapter is a PEFT adapter") as told:
            refused(tmp_path / "adapter")
        assert f"load('{tmp_path}/base'), '{tmp_path}/adapter').merge_and_unload()" in str(told.value.hint)


# --- as a recipe has it -------------------------------------------------------------------------------------


def small(variant: str = "mrt5", **settings: Any) -> MrT5ForConditionalGeneration:
    model = tiny(variant)
    torch.manual_seed(1)
    lora.add_lora(model, LoraSection(**{"rank": 2, **settings}))
    return model


def test_merging_changes_no_output_and_leaves_the_model_as_it_is():
    model = small(targets=EVERY)
    train(model)
    expected, before = outputs(model), {name: weight.clone() for name, weight in model.state_dict().items()}
    whole = tiny("mrt5", seed=9)
    whole.load_state_dict(lora.merged(model))
    assert_same(outputs(whole), expected, tolerance=1e-5)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("variant", ["mrt5", "hnet", "bp_gumbel", "cp_2", "random", "none"])
def test_the_shortener_is_trained_whole_and_without_changes(variant: str):
    model = small(variant, targets=EVERY)
    ours = {
        name for name, _ in tiny(variant).named_parameters() if "shared" not in name and "embed" not in name
    }
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    kind = SHORTENERS.get(model.config.deletion_type)
    whole = {name for name in ours if kind and (f".{kind.name}." in name or ".down_ln." in name)}
    assert bool(whole) == (variant not in ("random", "none"))
    assert {name for name in trained if ".lora_" not in name} == whole


def test_a_shortener_of_your_own_may_have_parts_of_the_same_names():
    model = tiny("mrt5")
    gate: Any = model.encoder.shortener
    gate.q = torch.nn.Linear(16, 16)
    lora.add_lora(model, LoraSection())
    assert type(gate.q) is torch.nn.Linear and gate.q.weight.requires_grad


def test_changes_are_taken_up_to_the_last_bit(tmp_path: Path):
    model = small(dropout=0.5)
    train(model)
    model.save_pretrained(tmp_path, state_dict=lora.merged(model))
    lora.save(model, tmp_path)
    again = load(tmp_path)
    lora.add_lora(again, LoraSection(rank=2, dropout=0.5), tmp_path)
    expected, found = model.state_dict(), again.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("broken", ["absent", "cut off", "other"])
def test_a_checkpoint_without_its_changes_is_refused(broken: str, tmp_path: Path):
    checkpoint = tmp_path / "run/checkpoints/step-00000003"
    checkpoint.mkdir(parents=True)
    lora.save(small(targets=["q"] if broken == "other" else ["q", "v"]), checkpoint)
    file = checkpoint / lora.FILE
    if broken == "absent":
        file.unlink()
    elif broken == "cut off":
        file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match=rf"step-00000003 is not a complete checkpoint: .*{lora.FILE}"):
        lora.add_lora(tiny("mrt5"), LoraSection(rank=2), checkpoint)
