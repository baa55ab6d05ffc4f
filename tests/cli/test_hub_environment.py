"""A hub export where our package is not: plain transformers loads it, and every number is the same.

One process loads every kind of model. In the default suite it runs in this environment with the package shut
out; the slow test runs it in a fresh one that never had it, with the locked transformers and the oldest.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import SPANS, make_run

from mrt5cli.convert.modules import TRANSFORMERS

ROOT = Path(__file__).parents[2]
TINY = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 2, "num_layers": 3, "num_decoder_layers": 1}
GATE = {"deletion_type": "scaled_sigmoid", "delete_gate_layer": 1, "gate_bias_init": 0.0}

CASES: dict[str, dict[str, Any]] = {
    "none": {"deletion_type": "none"},
    "gate": GATE,
    "gate-softmax1": GATE | {"use_softmax1": True, "gate_layer_norm_type": "layer"},
    "gate-layer0-compacted": GATE | {"delete_gate_layer": 0, "hard_delete_positions": "compacted"},
    "gate-learned-positions": GATE
    | {"has_absolute_position_embeddings": True, "max_position_embeddings": 64},
    "gate-bias-per-layer": GATE | {"relative_bias_per_layer": True},
    "gate-sharded": GATE,
    "gate-bf16": GATE,
    "log-sigmoid": GATE | {"deletion_type": "log_sigmoid"},
    "random": {"deletion_type": "random", "delete_gate_layer": 1},
    "fixed": {"deletion_type": "fixed", "delete_gate_layer": 1},
    "boundary": {"deletion_type": "boundary_predictor", "delete_gate_layer": 1, "use_softmax1": True},
    "convolution": {"deletion_type": "convolution", "delete_gate_layer": 1, "downsampling_rate": 2},
    "source-removed": {"deletion_type": "source_removed"},
}
REPOSITORY = "someone/tiny-mrt5"
CARDS = ("card-here", "card-from-the-hub")

CHILD = r'''
"""Arguments: a folder of exports; "shut-out" to shut mrt5cli out of an environment that has it."""
import contextlib, io, json, os, re, sys, tempfile
from pathlib import Path

folder, shut_out = Path(sys.argv[1]), "shut-out" in sys.argv

class NoToolkit:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mrt5cli":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

if shut_out:
    sys.meta_path.insert(0, NoToolkit())
try:
    import mrt5cli
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the toolkit can be imported here, so this would show nothing")

import torch, transformers
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

report = {"versions": {"python": sys.version.split()[0], "torch": torch.__version__,
                       "transformers": transformers.__version__}}

def logits(model, given, hard):
    with torch.inference_mode():
        return model(**given, hard_delete=hard).logits.float()

def differences(model, expected):
    given = {name: expected[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    source = {name: given[name] for name in ("input_ids", "attention_mask")}
    found = {}
    for name, hard in (("soft", False), ("hard", True)):
        found[name] = float((logits(model, given, hard) - expected[f"logits_{name}"]).abs().max())
        beams = model.generate(**source, hard_delete=hard, num_beams=3, max_new_tokens=8)
        found[f"beams_{name}"] = beams.tolist() == expected[f"beams_{name}"].tolist()
    return found

def run_card(where):
    code = re.search(r"```python\n(.*?)```", (where / "README.md").read_text(encoding="utf-8"), re.S)[1]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(where / "README.md"), "exec"), {})
    return printed.getvalue()

for numbers in sorted(folder.glob("*.safetensors")):
    case, expected = folder / "models" / numbers.stem, load_file(numbers)
    config = AutoConfig.from_pretrained(case, trust_remote_code=True)
    # Left out, transformers would ask on the terminal: it reads the configuration for a tokenizer too.
    tokenizer = AutoTokenizer.from_pretrained(case, trust_remote_code=False)
    model, info = AutoModelForSeq2SeqLM.from_pretrained(
        case, trust_remote_code=True, output_loading_info=True
    )
    report[case.name] = {
        "model_type": config.model_type,
        "tokenizer": [type(tokenizer).__name__, tokenizer("h\u00e9").input_ids, len(tokenizer)],
        "module": type(model).__module__,
        "dtype": str(model.dtype),
        "training": model.training,
        "incomplete": sorted(str(key) for keys in info.values() for key in keys),
        "max_new_tokens": model.generation_config.max_new_tokens,
        **differences(model.eval(), expected),
    }
    if case.name == "gate":
        with tempfile.TemporaryDirectory() as other:
            model.save_pretrained(other)
            again = AutoModelForSeq2SeqLM.from_pretrained(other, trust_remote_code=True)
        report["saved-again"] = differences(again.eval(), expected)

os.chdir(folder / "models" / "card-here")
report["card-here"] = run_card(Path("."))
report["card-from-the-hub"] = run_card(folder / "models" / "card-from-the-hub")

if shut_out:
    # The toolkit may also come later, in a process that has loaded the exported code.
    sys.meta_path.pop(0)
    import mrt5cli.models
    case, expected = folder / "models" / "gate", load_file(folder / "gate.safetensors")
    ours = mrt5cli.models.load(case)
    local = AutoModelForSeq2SeqLM.from_pretrained(case, trust_remote_code=True)
    report["toolkit-later"] = {
        "ours": differences(ours, expected),
        "class": type(local).__module__,
        "exported": differences(again, expected),
    }
print(json.dumps(report))
'''


def run_child(folder: Path, python: str | Path, *arguments: str, timeout: float) -> dict[str, Any]:
    script = folder / "child.py"
    script.write_text(CHILD, encoding="utf-8")
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "HF_HOME": str(folder / "hf"),
        "HF_MODULES_CACHE": str(folder / f"modules-{Path(python).parts[-3]}"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [str(python), "-I", str(script), str(folder), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    assert "newly initialized" not in done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def export_all(folder: Path) -> None:
    """Every kind of model, exported, with what ours computes beside it; and two exports with their cards."""
    import torch
    from safetensors.torch import save_file

    from mrt5cli.convert.files import Job
    from mrt5cli.convert.layouts import write_hub
    from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration, load
    from mrt5cli.rundir import RunDir

    torch.manual_seed(0)
    input_ids = torch.randint(3, 259, (3, 24))
    input_ids[:, ::5] = ord(" ") + 3
    input_ids[1, 15:] = 0
    given = {
        "input_ids": input_ids,
        "attention_mask": (input_ids != 0).long(),
        "decoder_input_ids": torch.randint(3, 259, (3, 9)),
    }
    source = {name: given[name] for name in ("input_ids", "attention_mask")}
    for name, fields in CASES.items():
        model = MrT5ForConditionalGeneration(MrT5Config(**TINY, **fields)).eval()
        for key, parameter in model.named_parameters():
            if "feed_forward.weight" in key or "boundary_predictor.boundary_predictor" in key:
                torch.nn.init.normal_(parameter)
        target = folder / "models" / name
        target.mkdir(parents=True)
        if name == "gate-bf16":
            model = model.to(torch.bfloat16)
        write_hub(Job(model, shard_size="100KB" if name == "gate-sharded" else "5GB"), target)
        expected = {}
        for kind, hard in (("soft", False), ("hard", True)):
            with torch.inference_mode():
                output = model(**given, hard_delete=hard)
            expected[f"logits_{kind}"] = output.logits.float()
            beams = model.generate(**source, hard_delete=hard, num_beams=3, max_new_tokens=8)
            expected[f"beams_{kind}"] = beams.contiguous()
        if name not in ("none", "source-removed"):
            left = output.kept_lengths.sum() / (input_ids != 0).sum()
            assert 0.1 < left < 0.9, f"{name} keeps {left:.0%}: this would test little"
        save_file({**given, **expected}, folder / f"{name}.safetensors")

    run = RunDir(make_run(folder, "tiny", task=SPANS))
    trained = load(run.model)
    for name, repository in zip(CARDS, (None, REPOSITORY), strict=True):
        target = folder / "models" / name
        target.mkdir()
        write_hub(Job(trained, run.recipe(), run, repo_id=repository), target)
    # As `huggingface_hub` would have downloaded it.
    cached = folder / "hf" / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    (cached / "snapshots").mkdir(parents=True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    (cached / "snapshots" / commit).symlink_to(folder / "models" / CARDS[1])
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    export_all(folder)
    return folder


@pytest.fixture(scope="module")
def report(exports: Path) -> Iterator[dict[str, Any]]:
    yield run_child(exports, sys.executable, "shut-out", timeout=300)


def check_same(found: dict[str, Any]) -> None:
    assert found["soft"] <= 1e-5
    assert found["hard"] <= 1e-5
    assert found["beams_soft"] and found["beams_hard"]


def check_case(name: str, report: dict[str, Any]) -> None:
    found = report[name]
    check_same(found)
    assert found["module"].startswith("transformers_modules.")
    assert found["module"].endswith(".modeling_mrt5")
    assert found["model_type"] == "mrt5"
    assert found["tokenizer"] == ["ByT5Tokenizer", [ord("h") + 3, 0xC3 + 3, 0xA9 + 3, 1], 384]
    assert found["incomplete"] == []
    assert found["dtype"] == ("torch.bfloat16" if name == "gate-bf16" else "torch.float32")
    assert not found["training"]
    assert found["max_new_tokens"] == (64 if name == "gate-learned-positions" else 512)


def check_card(printed: str) -> None:
    generated, share = printed.splitlines()
    assert re.fullmatch(r"\[(?s:.*)\]", generated)
    kept = re.fullmatch(r"share of the input kept: tensor\(\[(.*)\]\)", share)
    assert kept is not None and 0 < float(kept[1]) < 1


@pytest.mark.parametrize("name", CASES)
def test_plain_transformers_computes_the_same(name: str, report: dict[str, Any]) -> None:
    check_case(name, report)


@pytest.mark.parametrize("name", CARDS)
def test_the_code_of_the_card_runs(name: str, report: dict[str, Any]) -> None:
    check_card(report[name])


def test_saved_again_it_still_brings_its_code(report: dict[str, Any]) -> None:
    check_same(report["saved-again"])


def test_the_toolkit_can_be_imported_after_the_exported_code(report: dict[str, Any]) -> None:
    later = report["toolkit-later"]
    check_same(later["ours"])
    check_same(later["exported"])
    assert later["class"] == "mrt5cli.models.mrt5"


@pytest.mark.slow
def test_a_fresh_environment_without_the_toolkit(exports: Path, tmp_path: Path) -> None:
    locked = dict(
        line.split("==") for line in (ROOT / ".requirements.lock").read_text().splitlines() if "==" in line
    )
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    # torch first and alone: what is asked for later cannot bring another build of it.
    pip_install(python, f"torch=={locked['torch']}")
    for version in (locked["transformers"], f"{TRANSFORMERS[0]}.{TRANSFORMERS[1]}.0"):
        pip_install(python, f"transformers=={version}", f"safetensors=={locked['safetensors']}")
        report = run_child(exports, python, timeout=600)
        assert report["versions"]["transformers"] == version
        for name in CASES:
            check_case(name, report)
        for name in CARDS:
            check_card(report[name])
        check_same(report["saved-again"])


def pip_install(python: Path, *requirements: str) -> None:
    subprocess.run([str(python), "-m", "pip", "install", "-q", *requirements], check=True)
