"""What the attention kernels take of a GPU that need not be here: registers, spilled bytes, shared memory.

    python tests/benchmarks/kernel_resources.py        # a table of all; needs triton

Triton's compiler and NVIDIA's assembler report them with every feature on. Each process compiles again.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

try:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile
except ImportError:
    sys.exit("this needs triton, which comes with PyTorch for CUDA: pip install triton")

from mrt5cli.models.fast.kernels import tiles, varlen

PROGRAMS = ("forward", "backward_queries", "backward_keys")
FLOATS = {"lse", "excess", "rel", "gate", "delta", "d_rel", "d_gate", "d_excess"}
INTEGERS = {"pos_q", "pos_k", "cu_q", "cu_k"}
REALS = {"ceiling", "scale"}
NUMBERS = {"total_q", "total_k", "far", "heads", "blocks", "replicas", "threshold"}
SWITCHES = {"HAS_REL", "REL_GRAD", "HAS_GATE", "HAS_CEILING", "HAS_COUNTED", "HAS_DROPOUT", "SOFTMAX1"}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Resources(NamedTuple):
    """What one program takes: registers and spilled bytes of a thread, shared memory of a block in bytes."""

    registers: int
    spilled: int
    shared: int


def compiled(
    program: str, width: int, dtype: torch.dtype, capability: int, tile: Any, **switches: Any
) -> Any:
    """A program compiled for a device, as Triton returns it.

    Args:
        program: one of `PROGRAMS`.
        width: of a head.
        capability: 80, 90, 100.
        tile: `Tiles`, what it is cut in.
        **switches: in place of everything but causality on.
    """
    kernel = getattr(tiles, program)
    constants = dict.fromkeys(SWITCHES, True) | {
        "CAUSAL": False, "PRECISION": "ieee", "WIDTH": width, "PADDED": varlen.padded_width(width),
        "BLOCK_Q": tile.queries, "BLOCK_K": tile.keys,
    } | switches  # fmt: skip
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    values = "*bf16" if dtype == torch.bfloat16 else "*fp32"
    types = {key: _type(key, values, constants) for key in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, key in enumerate(types)
        if types[key][0] == "*" or key.startswith("stride")
    }
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    if tile.registers is not None:
        options["maxnreg"] = tile.registers
    target = GPUTarget("cuda", capability, 32)
    return compile(ASTSource(kernel, types, constants, aligned), target=target, options=options)


def _type(key: str, values: str, constants: dict[str, Any]) -> str:
    if key in constants:
        return "constexpr"
    if key in FLOATS:
        return "*fp32"
    if key in INTEGERS:
        return "*i32"
    if key in ("counted", "seed"):
        return {"counted": "*u8", "seed": "*i64"}[key]
    if key in REALS:
        return "fp32"
    return "i32" if key in NUMBERS or key.startswith("stride") else values


def resources(built: Any) -> Resources:
    """What NVIDIA's tools say of a compiled program."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(built.asm["cubin"])
        asked = [TOOLS / "cuobjdump", "--dump-resource-usage", file.name]
        said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"\b(REG|STACK):(\d+)", said))
    return Resources(int(found["REG"]), int(found["STACK"]), built.metadata.shared)


def table(
    capabilities: tuple[int, ...], dtypes: tuple[str, ...], widths: tuple[int, ...]
) -> dict[str, Resources]:
    """Resources by "sm_CAPABILITY dtype width program", as the programs are launched."""
    found = {}
    for capability, name, width in product(capabilities, dtypes, widths):
        dtype = getattr(torch, name)
        cut = varlen.tiles_for(width, dtype)
        for program in PROGRAMS:
            built = compiled(program, width, dtype, capability, getattr(cut, program))
            found[f"sm_{capability} {name} {width} {program}"] = resources(built)
    return found


def main(arguments: list[str]) -> None:
    chosen = [part.split(",") for part in arguments if not part.startswith("-")]
    capabilities, dtypes, widths = chosen or (["80", "90", "100"], ["bfloat16", "float32"], ["64", "128"])
    found = table(tuple(map(int, capabilities)), tuple(dtypes), tuple(map(int, widths)))
    if "--json" in arguments:
        print(json.dumps(found))
        return
    print("| device, operands, head width, kernel | registers | spilled bytes | shared KiB |")
    print("|---|---|---|---|")
    for name, (registers, spilled, shared) in found.items():
        print(f"| {name} | {registers} | {spilled} | {shared / 1024:.0f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
