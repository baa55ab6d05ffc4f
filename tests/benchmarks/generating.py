"""Times `mrt5 generate` against what it is made of.

    python tests/benchmarks/generating.py --threads 1
    python tests/benchmarks/generating.py --size byt5-small --lines 128 --alone 8 --rounds 2

Lines of one length are read from a file, written for and written to another, in parts. Each part is followed
by what `mrt5 bench --what generate` times, `model.generate` of one batch, as often as makes as many rows, and
by a loop of `model.generate` over a few of the lines, one at a time. Medians are of the ratios within parts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from mrt5cli import runtime
from mrt5cli.benchmark.generation import greedy
from mrt5cli.benchmark.models import Shapes, Variant, base_model, ours
from mrt5cli.byte_tokens import EOS, encode
from mrt5cli.generation.generate import Job, Settings
from mrt5cli.generation.inputs import Source
from mrt5cli.generation.outputs import Output
from mrt5cli.generation.table import Table, write
from mrt5cli.models import MrT5ForConditionalGeneration

GOALS = {"model.generate of a batch": 0.95, "model.generate, a line at a time": 3.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", help="a checkpoint; by default random weights of --size")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--lines", type=int, default=20_000)
    parser.add_argument("--length", type=int, default=64, help="byte tokens of a line, EOS included")
    parser.add_argument("--target", type=int, default=32, help="byte tokens of an output")
    parser.add_argument("--alone", type=int, default=64, help="lines a part that are written for alone")
    parser.add_argument("--rounds", type=int, default=10, help="parts of the lines")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = runtime.device(options.device)
    base = base_model(options.model, options.size)
    model = ours(base, "packed" if device.type == "cpu" else "sdpa", deletion_type="none").to(device)
    model.lm_head.weight.data[EOS] = 0.0  # the logit of another token is above 0: no output ends early
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        parts = [
            measured(model, Path(folder), options, part * options.lines // options.rounds)
            for part in range(options.rounds)
        ]
    print(
        f"{options.model or options.size}, {options.lines:,} lines of {options.length} -> {options.target} "
        f"byte tokens, {runtime.device_name(device)}, {options.threads} threads, torch {torch.__version__}"
    )
    rates = {name: median(part[name] for part in parts) for name in parts[0]}
    for name, rate in rates.items():
        print(f"{name:<34} {rate:>9,.1f} lines/s")
    for name, goal in GOALS.items():
        ratios = [part["mrt5 generate"] / part[name] for part in parts]
        held = "reached" if median(ratios) >= goal else "NOT REACHED"
        print(
            f"mrt5 generate to {name}: {median(ratios):.2f} times ({min(ratios):.2f}-{max(ratios):.2f}), "
            f"goal {goal}: {held}"
        )


def measured(
    model: MrT5ForConditionalGeneration, folder: Path, options: argparse.Namespace, first: int
) -> dict[str, float]:
    """Lines a second, of each way."""
    count = options.lines // options.rounds
    lines = [f"{number:0{options.length - 1}d}" for number in range(first, first + count)]
    file, out = folder / "lines.txt", folder / "out.txt"
    file.write_text("".join(f"{line}\n" for line in lines))
    job = Job.of(model, Settings(max_new_tokens=options.target, scores=False))
    rows = min(count, max(1, job.options.batch_tokens // (options.length + options.target)))
    batch = Variant(model, Shapes(rows, options.length, options.target))
    found = {"mrt5 generate": count / seconds(lambda: through(job, file, out))}
    batches = max(1, round(count / rows))
    taken = seconds(lambda: [greedy(batch) for _ in range(batches)])
    found["model.generate of a batch"] = batches * rows / taken
    written = out.read_text(encoding="utf-8").split("\n")
    alone: list[str] = []
    taken = seconds(lambda: alone.extend(one_by_one(model, lines[: options.alone], options.target)))
    found["model.generate, a line at a time"] = len(alone) / taken
    assert written[: len(alone)] == [text.replace("\n", "\\n").replace("\r", "\\r") for text in alone]
    return found


def seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def through(job: Job, file: Path, out: Path) -> None:
    """What the command does."""
    with job.pens() as pens, Source(file, None) as inputs, Output(out, {}) as output:
        write(job, pens, inputs, output, Table())
        output.finish()


def one_by_one(model: Any, lines: list[str], target: int) -> list[str]:
    found = []
    for line in lines:
        ids = torch.from_numpy(encode(line, add_eos=True))[None].to(model.device)
        tokens = model.generate(ids, max_new_tokens=target, do_sample=False)[0, 1:].tolist()
        found.append(bytes(token - 3 for token in tokens if 3 <= token < 259).decode("utf-8", "replace"))
    return found


if __name__ == "__main__":
    main()
