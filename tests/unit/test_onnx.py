"""In onnxruntime a model computes what it computes in PyTorch: states, kept bytes, logits and answers."""

from __future__ import annotations

import importlib.util
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner
from variants import tiny

from mrt5cli.cli import app
from mrt5cli.convert import layouts
from mrt5cli.convert.files import Job
from mrt5cli.convert.onnx import EXAMPLE, write_onnx
from mrt5cli.errors import UserError

PAGE = Path(layouts.__file__).parent / "README.md"
MODELS: dict[str, dict[str, Any]] = {
    "mrt5": {"use_softmax1": True},
    "log_sigmoid": {},
    "none": {},
}
SIZES = [(1, 1), (1, 2), (2, 1), (3, 11), (4, 37), (7, 200)]
TOLERANCE = 1e-4


class Exported:
    """A model and what the page's own code makes of its graphs."""

    def __init__(self, variant: str, folder: Path) -> None:
        self.model, self.folder = tiny(variant, num_layers=2, **MODELS[variant]), folder
        self.model.save_pretrained(folder / "ours")
        words = ["convert", str(folder / "ours"), str(folder / "exported"), "--to", "onnx"]
        self.told = CliRunner().invoke(app, words)
        assert self.told.exit_code == 0, self.told.output
        code, _ = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
        (folder / "page.py").write_text(
            code.replace('f"exported/', f'f"{folder}/exported/'), encoding="utf-8"
        )
        names = runpy.run_path(str(folder / "page.py"))
        self.encoder, self.decoder = names["encoder"], names["decoder"]
        self.run: Callable[..., dict[str, np.ndarray]] = names["run"]
        self.generate: Callable[..., np.ndarray] = names["generate"]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.ci if name == "mrt5" else pytest.mark.slow) for name in MODELS
    ],
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(request.param, tmp_path_factory.mktemp(request.param))


def ragged(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of rows of bytes of all lengths up to `length`."""
    random = torch.Generator().manual_seed(rows * 1000 + length)
    lengths = torch.randint(1, length + 1, (rows, 1), generator=random)
    lengths[0] = length
    mask = (torch.arange(length) < lengths).long()
    return torch.randint(3, 259, (rows, length), generator=random) * mask, mask


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_states_kept_bytes_and_logits(exported: Exported, size: tuple[int, int]) -> None:
    ids, mask = ragged(*size)
    model = exported.model
    decoder_input_ids = torch.randint(3, 259, (len(ids), 13))
    with torch.no_grad():
        encoded = model.encoder(input_ids=ids, attention_mask=mask, hard_delete=True)
        logits = model(
            encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=decoder_input_ids
        ).logits
    found = exported.run(exported.encoder, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    np.testing.assert_array_equal(found["encoder_attention_mask"], encoded.attention_mask)
    kept = mask.bool() if encoded.keep_mask is None else encoded.keep_mask
    np.testing.assert_array_equal(found["keep_mask"], kept)
    if len(ids) > 2:
        assert (kept.sum() < mask.sum()) == (model.config.deletion_type != "none")
    states = found["last_hidden_state"][found["encoder_attention_mask"] != 0]
    expected = encoded.last_hidden_state[encoded.attention_mask != 0]
    np.testing.assert_allclose(states, expected, atol=TOLERANCE, rtol=0)
    past = {
        tensor.name: np.zeros((len(ids), tensor.shape[1], 0, tensor.shape[3]), np.float32)
        for tensor in exported.decoder.get_inputs()
        if tensor.name.startswith("past.")
    }
    feed = found | past | {"decoder_input_ids": decoder_input_ids.numpy()}
    np.testing.assert_allclose(exported.run(exported.decoder, feed)["logits"], logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_page_generates_what_generate_generates(exported: Exported, size: tuple[int, int]) -> None:
    ids, mask = ragged(*size)
    expected = exported.model.generate(
        ids, attention_mask=mask, hard_delete=True, max_new_tokens=24, do_sample=False
    )
    np.testing.assert_array_equal(exported.generate(ids.numpy(), mask.numpy(), 24), expected)


def test_what_is_written_and_told(exported: Exported) -> None:
    folder = exported.folder / "exported"
    expected = {"config.json", "generation_config.json", "tokenizer_config.json", "added_tokens.json"}
    graphs = {f"{name}.onnx{end}" for name in ("encoder", "decoder") for end in ("", ".data")}
    assert {path.name for path in folder.iterdir()} == expected | graphs
    assert "encoder and decoder for onnxruntime" in exported.told.stdout
    deletes = exported.model.config.deletion_type != "none"
    assert ("always removes bytes" in exported.told.stdout) == deletes
    assert "torch.onnx" not in exported.told.output and "Warning" not in exported.told.output
    for graph in folder.glob("*.onnx"):
        assert b".py" not in graph.read_bytes()  # no place in the sources, and none of this machine


def test_the_example_has_no_two_equal_sizes() -> None:
    sizes = [*EXAMPLE.values(), tiny("mrt5").config.num_heads]
    assert min(sizes) > 1 and len({*EXAMPLE.values()}) == len(EXAMPLE)


@pytest.mark.parametrize(
    ("variant", "fields", "why"),
    [
        ("random", {}, "has deletion_type 'random'"),
        ("mrt5", {"has_absolute_position_embeddings": True}, "has learned positions"),
        ("mrt5", {"dtype": torch.bfloat16}, "these weights are bfloat16"),
    ],
)
def test_what_cannot_be_written_is_refused(
    variant: str, fields: dict[str, Any], why: str, tmp_path: Path
) -> None:
    model = tiny(variant, **{name: value for name, value in fields.items() if name != "dtype"})
    with pytest.raises(UserError, match=why):
        write_onnx(Job(model.to(fields.get("dtype", torch.float32))), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_its_packages_it_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(UserError, match=r"needs onnxscript\n.*pip install 'onnx>="):
        write_onnx(Job(tiny("mrt5")), tmp_path)
