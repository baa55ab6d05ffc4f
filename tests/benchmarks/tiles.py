"""Which tiles the attention kernels are to be cut in: what candidates take on the CUDA device at hand.

    python tests/benchmarks/tiles.py           # two minutes, most of it compilation

Shapes are those of byt5-small on a batch of 16: `tiles_for` (models/fast/kernels/varlen.py) is set from the
fastest. A candidate that does not fit the device says so.

Legend: N heads, H head width, n positions of all rows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from mrt5cli.models.fast.kernels import grid

ROWS, LENGTH, HEADS, WIDTH, FAR = 16, 1024, 6, 64, 128
ROUNDS = 20
PRODUCTS = {"forward": 2, "backward_queries": 3, "backward_keys": 4}
CANDIDATES = {
    "forward": [
        (128, 64, 8, 2, 128), (128, 64, 8, 2), (128, 64, 8, 3, 128), (128, 128, 8, 2), (64, 64, 4, 2, 128),
        (64, 64, 4, 2, 168), (64, 128, 4, 2),
    ],
    "backward_queries": [
        (128, 32, 8, 2), (128, 64, 8, 2), (128, 64, 8, 3), (64, 64, 4, 2), (64, 32, 4, 2, 168),
        (64, 64, 8, 2, 128),
    ],
    "backward_keys": [
        (64, 128, 8, 2), (32, 128, 8, 2), (64, 64, 4, 2), (32, 64, 4, 2, 168), (64, 64, 8, 2),
        (32, 64, 4, 3, 168),
    ],
}  # fmt: skip
"""Rows of queries and of keys, warps, stages, registers."""
CASES: dict[str, dict[str, Any]] = {
    "self-attention, gate": {"queries": None, "dropout": 0.0, "score_ceiling": None},
    "self-attention, gate, dropout, score loss": {"queries": None, "dropout": 0.1, "score_ceiling": 5.0},
    "cross-attention, the same": {"queries": 189, "dropout": 0.1, "score_ceiling": 5.0},
}


class Timed:
    """A kernel whose launches are timed by events around them."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.spans = kernel, []

    def __getitem__(self, programs: Any) -> Any:
        def launch(*given: Any, **constants: Any) -> None:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            self.kernel[programs](*given, **constants)
            end.record()
            self.spans.append((begin, end))

        return launch

    def milliseconds(self) -> float:
        """The median, after the first quarter of the launches."""
        torch.cuda.synchronize()
        spans = self.spans[len(self.spans) // 4 :]
        return median(begin.elapsed_time(end) for begin, end in spans)


@contextmanager
def timed(varlen: Any) -> Iterator[dict[str, Timed]]:
    """The kernels that `varlen` launches, timed."""
    kernels = {name: Timed(getattr(varlen, name)) for name in CANDIDATES}
    for name, kernel in kernels.items():
        setattr(varlen, name, kernel)
    try:
        yield kernels
    finally:
        for name, kernel in kernels.items():
            setattr(varlen, name, kernel.kernel)


def inputs(queries: int | None, **options: Any) -> tuple[list[Tensor], dict[str, Any]]:
    """Query, key and value, and how to attend: within sources, or from so many queries of each row."""
    device = torch.device("cuda")
    keys = replace(
        grid(ROWS, LENGTH, device), positions=torch.arange(LENGTH, device=device).int().repeat(ROWS)
    )
    gate = -torch.rand(ROWS * LENGTH, device=device)
    how = {
        "queries": keys,
        "keys": keys,
        "rel": None,
        "gate": gate.requires_grad_(),
        "softmax1": True,
        **options,
    }
    of_rows = (0.3 * torch.randn(ROWS * LENGTH, 3, HEADS, WIDTH, device=device)).to(torch.bfloat16)
    query, key, value = of_rows.requires_grad_().unbind(1)  # as of one product
    if queries is None:
        how["rel"] = torch.randn(HEADS, 2 * FAR + 1, device=device).requires_grad_()
    else:
        how["queries"] = grid(ROWS, queries, device)
        query = query[: ROWS * queries].contiguous()
    return [query, key, value], how


def measure(
    varlen: Any, name: str, candidate: tuple[int, ...], given: list[Tensor], how: dict[str, Any]
) -> float | None:
    """Milliseconds of a kernel cut in a candidate's way, the others as they are; None if it does not fit."""
    from triton.runtime.errors import OutOfResources

    cut = varlen.tiles_for(WIDTH, torch.bfloat16)._replace(**{name: varlen.Tiles(*candidate)})
    sought = [part for part in (*given, how["rel"], how["gate"]) if part is not None]
    try:
        with timed(varlen) as kernels:
            for _ in range(ROUNDS):
                output, excess = varlen.attend(*given, **how, cut=cut)
                if name != "forward":
                    torch.autograd.grad(output.sum() + (0 if excess is None else excess), sought)
            return kernels[name].milliseconds()
    except OutOfResources:
        return None


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit(
            "tiles are timed on a CUDA device, and there is none here; what the compiler says of them: "
            "python tests/benchmarks/kernel_resources.py"
        )
    from mrt5cli.models.fast.kernels import varlen

    print(torch.cuda.get_device_name(), torch.__version__)
    print("\n| case | kernel | queries, keys, warps, stages, registers | ms | TFLOP/s | |")
    print("|---|---|---|---|---|---|")
    for title, case in CASES.items():
        given, how = inputs(**case)
        pairs = ROWS * how["queries"].longest * LENGTH
        for name, candidates in CANDIDATES.items():
            found = {candidate: measure(varlen, name, candidate, given, how) for candidate in candidates}
            best = min(taken for taken in found.values() if taken is not None)
            for candidate, taken in found.items():
                cells = f"| {title} | {name} | {', '.join(map(str, candidate))} |"
                if taken is None:
                    print(cells, "does not fit | | |")
                    continue
                rate = PRODUCTS[name] * 2 * WIDTH * HEADS * pairs / taken / 1e9
                print(cells, f"{taken:.3f} | {rate:.0f} | {'best' if taken == best else ''} |", flush=True)


if __name__ == "__main__":
    main()
