"""What the attention kernels need at least on a GPU, by arithmetic.

    python tests/benchmarks/roofline.py        # the table of mrt5cli/models/README.md

Five units of a GPU work side by side, so a kernel takes no less than its busiest one. What a score takes is
counted in `fast/kernels/tiles.py`: products, exponentials, the integers of dropout (`dropping.keeps`), and
all instructions but those of the products, of a tile whose distances are all beyond the bias.

Legend: N heads, H head width.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """What a GPU does in a second: FLOP of matrix products in bfloat16, bytes of its memory; its
    multiprocessors and their clock in Hz."""

    products: float
    bytes: float
    processors: int
    clock: float


H200 = Device(products=790e12, bytes=4.3e12, processors=132, clock=1.98e9)
"""The first two as measured on one."""
EXPONENTIALS, INTEGERS, INSTRUCTIONS = 16, 64, 128
"""Of a multiprocessor, a cycle."""
HASH = 8
"""Integer instructions of `dropping.keeps` for a score."""


@dataclass(frozen=True)
class Kernel:
    """What one score takes: products of width H; instructions on a number besides exponential and hash, with
    gate, score loss and dropout; and which of (queries, keys) x (N, H) tensors are read and written."""

    products: int
    instructions: int
    of_queries: int
    of_keys: int


KERNELS = {
    # gate, ceiling 3, peak, exponent's argument, sum, dropped, half a conversion
    "forward": Kernel(2, 9, of_queries=2, of_keys=2),
    # gate, ceiling 3, argument, dropped, scaled, minus delta, times weight, half a conversion
    "backward_queries": Kernel(3, 10, of_queries=4, of_keys=2),
    # the same, another dropped, another conversion, the gate's gradient
    "backward_keys": Kernel(4, 12, of_queries=2, of_keys=4),
}


def needs(
    kernel: Kernel, rows: int, queries: int, keys: int, heads: int, width: int, dropout: bool
) -> dict[str, float]:
    """Seconds that each unit of an H200 works, in bfloat16."""
    device, scores = H200, rows * heads * queries * keys
    numbers = rows * heads * width * (kernel.of_queries * queries + kernel.of_keys * keys)
    cycles = device.processors * device.clock
    hashed = HASH if dropout else 0
    return {
        "products": kernel.products * 2 * width * scores / device.products,
        "memory": 2 * numbers / device.bytes,
        "exponentials": scores / (EXPONENTIALS * cycles),
        "integers": hashed * scores / (INTEGERS * cycles),
        "instructions": (kernel.instructions + hashed + 1) * scores / (INSTRUCTIONS * cycles),
    }


def table() -> str:
    """Markdown: microseconds of each unit at byt5-small's shapes, 16 rows, with everything on."""
    lines = [
        "| kernel, queries x keys | GFLOP | " + " | ".join(needs(KERNELS["forward"], 1, 1, 1, 1, 1, True))
    ]
    lines = [lines[0] + " | bound by |", "|---" * 8 + "|"]
    for queries, keys in ((1024, 1024), (189, 1024)):
        for name, kernel in KERNELS.items():
            found = needs(kernel, 16, queries, keys, 6, 64, dropout=True)
            work = found["products"] * H200.products / 1e9
            most = max(found, key=lambda unit: found[unit])
            cells = " | ".join(f"{1e6 * seconds:.0f}" for seconds in found.values())
            lines.append(f"| `{name}`, {queries} x {keys} | {work:.0f} | {cells} | {most} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
