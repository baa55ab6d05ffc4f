"""Times an optimizer step over ragged rows, divided by `training.device_batch_size` and by `batch_tokens`; or
greedy generation for them, by rows as they come, and by byte tokens as `mrt5 generate` divides a window.

    python tests/benchmarks/batching.py --threads 1
    python tests/benchmarks/batching.py --size tiny --write 32
    python tests/benchmarks/batching.py --size tiny --rows 16 --rounds 1

Lengths of sources are drawn log-normally, those of targets as a tenth of them; both ways hold as much at
their peak, because the budget is what a row batch of the longest rows takes. Steps are timed alternately,
with new rows each round, by the time that this process computes; medians are of the ratios within rounds.
Printed beside them: forward passes of a step, and the share of places that is padding.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import torch

from mrt5cli import runtime
from mrt5cli.benchmark.models import SIZES, base_model, ours
from mrt5cli.byte_tokens import EOS, IGNORED_LABEL, PAD
from mrt5cli.models import MrT5ForConditionalGeneration
from mrt5cli.models.inputs import on_device
from mrt5cli.tasks.base import Batch, batches_of, make_batch
from mrt5cli.training.micro_batches import micro_batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", default="byt5-small", choices=sorted(SIZES))
    parser.add_argument("--rows", type=int, default=64, help="examples of an optimizer step")
    parser.add_argument("--at-once", type=int, default=4, help="device_batch_size")
    parser.add_argument("--median", type=int, default=120, help="of source lengths")
    parser.add_argument("--longest", type=int, default=512, help="byte tokens that a source is cut to")
    parser.add_argument("--write", type=int, default=0, help="byte tokens to generate for each; 0: train")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = runtime.device(options.device)
    model = ours(base_model(None, options.size), "auto").to(device).train(not options.write)
    if options.write:
        model.lm_head.weight.data[EOS] = 0.0  # the logit of another token is above 0: no output ends early
    found = [measured(model, device, options, seed) for seed in range(options.rounds)]
    print(
        f"{options.size}, {options.rows} rows a step, sources of {options.median} byte tokens (median) to "
        f"{options.longest}, {runtime.device_name(device)}, {options.threads} threads, "
        f"torch {torch.__version__}"
    )
    for place, name in enumerate((f"rows, {options.at_once} at once", "byte tokens")):
        seconds, passes, padding = (median(each[place][fact] for each in found) for fact in range(3))
        print(f"{name:<20} {seconds:7.2f} s {passes:6.0f} passes {100 * padding:5.1f} % padding")
    ratios = [rows[0] / tokens[0] for rows, tokens in found]
    print(f"by tokens {median(ratios):.2f} times as fast ({min(ratios):.2f}-{max(ratios):.2f})")


def measured(
    model: MrT5ForConditionalGeneration, device: torch.device, options: argparse.Namespace, seed: int
) -> list[tuple[float, int, float]]:
    """(seconds, forward passes, share of padding) of a step over new rows, by rows and by tokens."""
    step = rows_of(seed, options.rows, options.median, options.longest)
    if options.write:
        step["labels"] = torch.zeros(options.rows, options.write, dtype=torch.int64)
    budget = options.at_once * (options.longest + step["labels"].shape[1])
    ways: list[Callable[[], list[Batch]]] = [
        lambda: list(batches_of(step, options.at_once)),
        lambda: micro_batches(step, budget),
    ]
    order = ways if seed % 2 else ways[::-1]
    taken = {id(way): timed(model, device, way, options.write) for way in order}
    return [taken[id(way)] for way in ways]


def timed(
    model: MrT5ForConditionalGeneration, device: torch.device, way: Callable[[], Sequence[Batch]], write: int
) -> tuple[float, int, float]:
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize()
    start = clock()
    batches = way()
    for batch in batches:
        if write:
            ids, mask = (batch[name].to(device) for name in ("input_ids", "attention_mask"))
            model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=write, hard_delete=True)
            continue
        loss = model(**on_device(batch, device), use_cache=False).loss
        assert loss is not None
        loss.backward()
    model.zero_grad()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = clock() - start
    places = sum(batch["input_ids"].numel() + batch["labels"].numel() for batch in batches)
    real = sum(int(b["attention_mask"].sum() + b["labels"].ne(IGNORED_LABEL).sum()) for b in batches)
    return seconds, len(batches), 1 - real / places


def rows_of(seed: int, number: int, middle: int, longest: int) -> Batch:
    """Rows of random bytes, (number, L) and (number, T)."""
    draw = np.random.default_rng(seed)
    sources = np.clip(draw.lognormal(np.log(middle), 0.8, number).astype(int), 8, longest)
    targets = np.maximum(sources // 10, 4)
    ids = draw.integers(3, 259, (number, sources.max()))
    labels = draw.integers(3, 259, (number, targets.max()))
    ids[np.arange(ids.shape[1]) >= sources[:, None]] = PAD
    labels[np.arange(labels.shape[1]) >= targets[:, None]] = IGNORED_LABEL
    return make_batch(ids, labels)


if __name__ == "__main__":
    main()
