"""What training on very many GPUs comes to, by arithmetic: how evenly a step is dealt out, what gradients and
checkpoints take. Nothing is timed; what is assumed of the machines is printed with the numbers.

    python tests/benchmarks/thousand.py
    python tests/benchmarks/thousand.py --rows 4 --steps 5

A step ends when the GPU with the most to do has done it, so it is dealt out as evenly as the mean of the work
over the largest, in multiply-accumulates of byt5-small without padding. Rows are as the toolkit has them:

    soft      span corruption, 1,024 -> 189 byte tokens, soft gates: all rows alike
    hard      the same with half deleted for real after layer 3, of a row 20 to 80 %
    ragged    the embedded text's documents, cut to 1,024 byte tokens; targets a tenth as long

"in order" gives each GPU its rows as they come; "dealt" is what `tasks.base.SeekableStream` does, by lengths,
which are known before the step. What a gate keeps of a row is not known, so hard steps are never dealt.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import cache
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from mrt5cli.analysis.compute import SOURCE, TARGET, Sizes, macs
from mrt5cli.analysis.throughput import gpu_rate
from mrt5cli.benchmark.models import kept_lengths
from mrt5cli.data.embedded import embedded_documents
from mrt5cli.recipe import load
from mrt5cli.tasks.base import Batch, SeekableStream
from mrt5cli.text import byte_size
from mrt5cli.training.estimates import SHAPES, parameters, sizes_of

Row = tuple[int, int, int]
"""Positions of a source, of what is kept of it, and of a target."""
GPUS = (8, 64, 1000)
SIZES = Sizes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=8, help="examples of a GPU in a step")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--network", type=float, default=50.0, help="GB/s that a GPU sends and receives")
    parser.add_argument("--disk", type=float, default=2.0, help="GB/s at which one process writes")
    options = parser.parse_args()
    rate = gpu_rate("bf16", "H200").flops
    weights = 4 * parameters(SIZES)
    print(
        f"byt5-small, {options.rows} rows a GPU; an H200 is taken to sustain {rate / 1e12:.0f} TFLOP/s "
        f"({gpu_rate('bf16', 'H200').origin}), a network {options.network:g} GB/s for each, in a ring that "
        "waits for backward to end\n"
    )
    print("rows     dealt out   GPUs  evenness  compute s  all-reduce s   bytes/s")
    for name, draw in DRAWS.items():
        for way, deal in (("in order", in_order), *([("dealt", dealt)] if name == "ragged" else [])):
            for gpus in GPUS:
                shares = [deal(draw(step, gpus * options.rows), gpus) for step in range(options.steps)]
                work = np.array([[sum(cost(row) for row in share) for share in step] for step in shares])
                even = float((work.mean(axis=1) / work.max(axis=1)).mean())
                compute = float(work.max(axis=1).mean()) * 6 / rate  # backward takes twice what forward does
                reduce = 2 * (gpus - 1) / gpus * weights / (options.network * 1e9)
                read = mean(sum(row[0] for share in step for row in share) for step in shares)
                print(
                    f"{name:<9}{way:<10}{gpus:>6}{even:>10.3f}{compute:>11.3f}{reduce:>14.3f}"
                    f"{read / (compute + reduce):>12,.0f}"
                )
    print("\ncheckpoints: weights and Adam's two moments in float32, written by one process")
    for name, shape in SHAPES.items():
        size = 3 * 4 * parameters(sizes_of(load("pctrl40"), shape))
        seconds = size / (options.disk * 1e9)
        print(f"byt5-{name:<8}{byte_size(size):>9}{seconds:8.1f} s at {options.disk:g} GB/s")


# --- rows ---------------------------------------------------------------------------------------------------


def soft(step: int, number: int) -> list[Row]:
    return [(SOURCE, SOURCE, TARGET)] * number


def hard(step: int, number: int) -> list[Row]:
    kept = np.random.default_rng(step).permutation(kept_lengths(number, SOURCE, 0.5, "wide"))
    return [(SOURCE, each, TARGET) for each in kept.tolist()]


def ragged(step: int, number: int) -> list[Row]:
    lengths = np.random.default_rng(step).choice(embedded_lengths(), number)
    return [(each, each, max(4, each // 10)) for each in lengths.tolist()]


@cache
def embedded_lengths() -> list[int]:
    return [min(SOURCE, len(document) + 1) for document in embedded_documents()]


DRAWS: dict[str, Callable[[int, int], list[Row]]] = {"soft": soft, "hard": hard, "ragged": ragged}


@cache
def cost(row: Row) -> int:
    """Multiply-accumulates of a row's forward pass."""
    source, kept, target = row
    return macs(SIZES, [source], [kept], [target])


# --- dealing out --------------------------------------------------------------------------------------------


def in_order(rows: Sequence[Row], gpus: int) -> list[list[Row]]:
    """The rows of each GPU, as they come."""
    each = len(rows) // gpus
    return [list(rows[at : at + each]) for at in range(0, len(rows), each)]


def nothing_read(indices: NDArray[np.int64]) -> Batch:
    raise NotImplementedError("only who gets which example is asked")


def dealt(rows: Sequence[Row], gpus: int) -> list[list[Row]]:
    """The rows of each GPU, as the toolkit's own stream deals them out."""
    sizes = np.array([source + target for source, _, target in rows])
    shares = []
    for rank in range(gpus):
        stream = SeekableStream(
            nothing_read,
            batch_size=len(rows) // gpus,
            rank=rank,
            world_size=gpus,
            sizes=lambda indices: sizes[indices],
        )
        [mine] = stream._dealt(np.zeros(1, dtype=np.int64)).tolist()
        shares.append([rows[row] for row in mine])
    return shares


if __name__ == "__main__":
    main()
