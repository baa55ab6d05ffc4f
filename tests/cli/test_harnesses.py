"""Evaluation harnesses and sentence-transformers run an export, and delete: the real packages, each in an
environment of its own, against what the model computes here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ByT5Tokenizer

from mrt5cli.convert.files import Job
from mrt5cli.convert.layouts import write_hub
from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "mrt5cli/evaluation/README.md"
LM_EVAL = ("lm_eval==0.4.13",)
LIGHTEVAL = ("lighteval==0.13.0", "huggingface_hub==1.31.0", "xxhash==3.8.2")
SENTENCES = ("sentence-transformers==6.2.0",)
ROWS: list[dict[str, Any]] = [
    {"question": "What is the capital of France?", "choices": ["Paris", "Rome, I think"], "label": 0},
    {"question": "Two and two?", "choices": ["five", "four"], "label": 1},
    {"question": "Bäume im Wald: welche Farbe?", "choices": ["blau", "grün", "rot"], "label": 1},
    {"question": "What does a cat say, as it is written in a book?", "choices": ["meow", "woof"], "label": 0},
]
NEW_TOKENS = 12

LM_EVAL_TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
CHOICE = """\
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: label
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITTEN = """\
output_type: generate_until
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: ["\\n"], do_sample: false, max_gen_toks: 12}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
LIGHTEVAL_TASKS = """\
from lighteval.metrics.metrics import Metrics
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc


def prompt(row, task_name):
    return Doc(task_name=task_name, query=row["question"], choices=row["choices"], gold_index=row["label"])


common = {"prompt_function": prompt, "hf_repo": DATA, "hf_subset": "default"}
common |= {"evaluation_splits": ["test"], "hf_avail_splits": ["test"]}
TASKS_TABLE = [
    LightevalTaskConfig(name="choice", metrics=[Metrics.loglikelihood_acc], **common),
    LightevalTaskConfig(
        name="written", metrics=[Metrics.exact_match], generation_size=12, stop_sequence=["\\n"], **common
    ),
]
"""
LIGHTEVAL_RESULTS = """\
import glob, json, sys
import pandas

found = {}
for name in ("choice", "written"):
    (path,) = glob.glob(f"{sys.argv[1]}/**/details_{name}*.parquet", recursive=True)
    responses = pandas.read_parquet(path).model_response
    field = {"choice": "logprobs", "written": "text"}[name]
    found[name] = {response["input"]: list(response[field]) for response in responses}
print(json.dumps(found))
"""
SENTENCES_RUN = """\
import json, sys
from sentence_transformers import SentenceTransformer
from mrt5_sentences import MrT5Sentences

texts = json.loads(sys.argv[2])
model = SentenceTransformer(modules=[MrT5Sentences(sys.argv[1])])
found = {"together": model.encode(texts).tolist(), "alone": [model.encode(text).tolist() for text in texts]}
model.save_pretrained("saved")
again = SentenceTransformer("saved", trust_remote_code=True)
found |= {"again": again.encode(texts).tolist(), "size": again.get_embedding_dimension()}
print(json.dumps(found))
"""


@pytest.fixture
def model() -> MrT5ForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 4, "num_decoder_layers": 2}
    fields = {"delete_gate_layer": 2, "gate_bias_init": 0.0, "inference_deletion": "hard"}
    made = MrT5ForConditionalGeneration(MrT5Config(**sizes, **fields)).eval()
    torch.nn.init.normal_(made.encoder.block[2].delete_gate.feed_forward.weight)
    return made


@pytest.fixture
def export(model: MrT5ForConditionalGeneration, tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    write_hub(Job(model), folder)
    return folder


def environment(tmp_path: Path, *requirements: str) -> Path:
    """Python of a fresh environment with the locked torch and transformers beside what is asked for."""
    lines = (ROOT / ".requirements.lock").read_text().splitlines()
    locked = [line for line in lines if re.match("(torch|transformers|accelerate)==", line)]
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    install = [str(python), "-m", "pip", "install", "-q"]
    # torch first and alone: what is asked for later cannot bring another build of it.
    subprocess.run([*install, *(line for line in locked if line.startswith("torch="))], check=True)
    subprocess.run([*install, *locked, *requirements], check=True)
    return python


def run(python: Path, *words: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(python.parent / str(words[0])), *map(str, words[1:])],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        | {"HF_HOME": str(cwd / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def code_of_the_page(name: str) -> str:
    found = re.search(rf"```python\n(# {name}\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def likelihoods(model: MrT5ForConditionalGeneration, hard: bool) -> list[list[float]]:
    """Of each row's choices after its question, each computed alone."""
    found = []
    for row in ROWS:
        source = ByT5Tokenizer()(row["question"], return_tensors="pt")
        sums = []
        for choice in row["choices"]:
            labels = torch.tensor([[byte + 3 for byte in choice.encode()]])
            with torch.inference_mode():
                logits = model(**source, labels=labels, hard_delete=hard).logits
            sums.append(float(logits.log_softmax(-1).gather(2, labels[..., None]).sum()))
        found.append(sums)
    return found


def answers(model: MrT5ForConditionalGeneration, hard: bool) -> list[str]:
    """The first bytes that it writes to each question."""
    tokenizer = ByT5Tokenizer()
    found = []
    for row in ROWS:
        source = tokenizer(row["question"], return_tensors="pt")
        ids = model.generate(**source, hard_delete=hard, do_sample=False, max_new_tokens=NEW_TOKENS)
        found.append(tokenizer.decode(ids[0], skip_special_tokens=True).split("\n")[0])
    return found


def check_likelihoods(found: list[list[float]], model: MrT5ForConditionalGeneration) -> None:
    for of, hard, soft in zip(found, likelihoods(model, True), likelihoods(model, False), strict=True):
        assert of == pytest.approx(hard, abs=1e-4)
        assert of != pytest.approx(soft, abs=1e-3), "soft deletion would give the same: this shows nothing"


def best(likelihoods: list[list[float]]) -> float:
    """The share of rows whose right choice is the likeliest."""
    right = [row["label"] == of.index(max(of)) for row, of in zip(ROWS, likelihoods, strict=True)]
    return sum(right) / len(right)


def write_rows(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.mark.slow
def test_lm_evaluation_harness(model: MrT5ForConditionalGeneration, export: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "tasks" / "rows.jsonl")
    for name, rest in (("choice", CHOICE), ("written", WRITTEN)):
        task = LM_EVAL_TASK.format(name=name, rows=rows) + rest
        (tmp_path / "tasks" / f"{name}.yaml").write_text(task, encoding="utf-8")
    python = environment(tmp_path, *LM_EVAL)
    arguments = f"pretrained={export},backend=seq2seq,trust_remote_code=True,max_length=4096"
    words = ("lm_eval", "--model", "hf", "--model_args", arguments, "--tasks", "choice,written")
    words += ("--include_path", "tasks", "--device", "cpu", "--batch_size", "3")
    run(python, *words, "--output_path", "out", "--log_samples", cwd=tmp_path)

    def samples(name: str) -> list[dict[str, Any]]:
        (path,) = tmp_path.glob(f"out/*/samples_{name}_*.jsonl")
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return sorted(lines, key=lambda line: line["doc_id"])

    (results,) = tmp_path.glob("out/*/results_*.json")
    scores = json.loads(results.read_text(encoding="utf-8"))["results"]
    check_likelihoods([[float(one[0][0]) for one in line["resps"]] for line in samples("choice")], model)
    assert scores["choice"]["acc,none"] == best(likelihoods(model, True))
    assert "exact_match,none" in scores["written"]
    written = [line["resps"][0][0] for line in samples("written")]
    # The harness lets an encoder-decoder write on for as long as its source is.
    assert all(found.startswith(start) for found, start in zip(written, answers(model, True), strict=True))
    assert not all(
        found.startswith(start) for found, start in zip(written, answers(model, False), strict=True)
    )


@pytest.mark.slow
def test_lighteval(model: MrT5ForConditionalGeneration, export: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data" / "test.jsonl").parent
    (tmp_path / "tasks.py").write_text(f"DATA = {str(data)!r}\n{LIGHTEVAL_TASKS}", encoding="utf-8")
    (tmp_path / "lighteval_mrt5.py").write_text(code_of_the_page("lighteval_mrt5.py"), encoding="utf-8")
    (tmp_path / "results.py").write_text(LIGHTEVAL_RESULTS, encoding="utf-8")
    python = environment(tmp_path, *LIGHTEVAL)
    # What it would download when it starts; a file that is there is not looked into.
    (tasks,) = tmp_path.glob("venv/lib/*/site-packages/lighteval/tasks/tasks")
    (tasks / "tinyBenchmarks.pkl").touch()
    words = ("lighteval", "custom", export, "lighteval_mrt5.py", "choice|0,written|0")
    words += ("--custom-tasks", "tasks.py", "--output-dir", "out", "--save-details")
    run(python, *words, cwd=tmp_path)
    (results,) = tmp_path.glob("out/results/**/results_*.json")
    scores = json.loads(results.read_text(encoding="utf-8"))["results"]
    found = json.loads(run(python, "python", "results.py", "out", cwd=tmp_path))
    # It shuffles rows.
    check_likelihoods([found["choice"][row["question"]] for row in ROWS], model)
    assert scores["choice|0"]["acc"] == best(likelihoods(model, True))
    assert "em" in scores["written|0"]
    written = [found["written"][row["question"]][0] for row in ROWS]
    assert written == answers(model, True)
    assert written != answers(model, False)


@pytest.mark.slow
def test_sentence_transformers(model: MrT5ForConditionalGeneration, export: Path, tmp_path: Path) -> None:
    (tmp_path / "mrt5_sentences.py").write_text(code_of_the_page("mrt5_sentences.py"), encoding="utf-8")
    (tmp_path / "run.py").write_text(SENTENCES_RUN, encoding="utf-8")
    python = environment(tmp_path, *SENTENCES)
    texts = [row["question"] for row in ROWS]
    found = json.loads(run(python, "python", "run.py", export, json.dumps(texts), cwd=tmp_path))
    vectors = {}
    for hard in (True, False):
        sources = [ByT5Tokenizer()(text, return_tensors="pt") for text in texts]
        with torch.inference_mode():
            encoded = [model.encoder(**source, hard_delete=hard) for source in sources]
        vectors[hard] = torch.cat([one.mean_pooled() for one in encoded])
    for how in ("together", "alone", "again"):
        torch.testing.assert_close(torch.tensor(found[how]), vectors[True], atol=1e-5, rtol=0)
    assert (torch.tensor(found["together"]) - vectors[False]).abs().amax(dim=1).min() > 1e-3
    assert found["size"] == 32
