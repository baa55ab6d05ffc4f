"""The Triton kernels of packed attention against the eager oracle, and the plan that feeds them.

Without a GPU the kernels run in Triton's interpreter, which shows that they compute the right numbers and
nothing of their speed; with one, tests/parity/test_gpu.py runs the same cases compiled. What only a compiler
can tell, whether a tile fits a device, is asked of the compiler.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packed_kernels import HAS_TRITON, NEEDS_TRITON, Case, cases, compare

if not HAS_TRITON:
    pytest.skip(NEEDS_TRITON, allow_module_level=True)

from mrt5cli.models.kernels.plan import Packed, Plan, grid
from mrt5cli.models.kernels.varlen import Tiles, attend, tiles_for

interpreted = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a CUDA device is here: -m gpu runs these cases compiled"
)

ALL_ON = Case((1, 33, 0, 20), None, 10, 9, True, True, 1.0, 0)
NO_KEYS = Case((0, 17), 7, 16, None, True, False, 1.0, 0)


@interpreted
@settings(max_examples=12, deadline=None)
@given(case=cases())
@example(ALL_ON)
@example(NO_KEYS)
def test_outputs_and_gradients(case: Case):
    compare(case, "cpu")


@interpreted
@pytest.mark.parametrize("case", [ALL_ON, NO_KEYS], ids=["self", "cross"])
def test_half_precision_is_near(case: Case):
    compare(case, "cpu", torch.float16)  # the interpreter multiplies bfloat16 as if it were integers


@interpreted
def test_with_the_tiles_of_a_launch():
    compare(Case((70, 3), None, 64, 9, True, True, 1.0, 0), "cpu", small=False)


@interpreted
def test_a_column_of_a_longer_projection():
    """Strides of a fused q|k|v, and a gradient that is one number everywhere."""
    whole = torch.randn(5, 3, 2, 16).requires_grad_()
    rows = Packed(torch.tensor([0, 2, 5], dtype=torch.int32), 3)
    output, _ = attend(*whole.unbind(1), queries=rows, keys=rows, rel=None, gate=None, one=True)
    output.sum().backward()
    parts = [whole.detach()[:, part].contiguous().requires_grad_() for part in range(3)]
    attend(*parts, queries=rows, keys=rows, rel=None, gate=None, one=True)[0].sum().backward()
    torch.testing.assert_close(whole.grad, torch.stack([part.grad for part in parts], dim=1))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"query": torch.zeros(3, 2, 16, dtype=torch.float64)}, "bfloat16"),
        ({"key": torch.zeros(3, 1, 16)}, "fit together"),
        ({"gate": torch.zeros(4)}, "one value a key"),
        ({"rel": torch.zeros(2, 4)}, "needs positions"),
        ({"value": torch.zeros(3, 16, 2).transpose(1, 2)}, "side by side"),
        ({name: torch.zeros(3, 2, 200) for name in ("query", "key", "value")}, "wider"),
        ({"queries": Packed(torch.tensor([0, 1, 3], dtype=torch.int32), 3)}, "same rows"),
        ({"queries": Packed(torch.tensor([0, 3]), 3)}, "int32"),
    ],
)
def test_what_the_kernels_do_not_take(change, words):
    rows = Packed(torch.tensor([0, 3], dtype=torch.int32), 3)
    given_ = {name: torch.zeros(3, 2, 16) for name in ("query", "key", "value")}
    given_ |= {"queries": rows, "keys": rows, "rel": None, "gate": None, "one": True} | change
    with pytest.raises(ValueError, match=words):
        attend(given_.pop("query"), given_.pop("key"), given_.pop("value"), **given_)


@given(
    rows=st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4),
    known=st.booleans(),
)
def test_the_plan(rows: list[list[bool]], known: bool):
    valid = torch.tensor(rows)
    positions = torch.arange(0, 50, 10) + torch.arange(len(rows))[:, None]
    lengths = valid.sum(dim=1)
    plan = Plan(valid, int(valid.sum()) if known else None, positions)
    assert torch.equal(plan.index, valid.flatten().nonzero()[:, 0])
    assert torch.equal(plan.packed.positions.long(), positions[valid])
    assert plan.packed.bounds.diff().tolist() == lengths.tolist()
    assert plan.packed.bounds.dtype == plan.packed.positions.dtype == torch.int32
    assert plan.is_full == bool(valid.all())
    assert torch.equal(Plan(valid).packed.positions.long(), valid.nonzero()[:, 1])
    values = torch.randn(*valid.shape, 3, dtype=torch.float64).requires_grad_()
    back = plan.unpack(plan.pack(values))
    assert torch.equal(back, values * valid[..., None])
    (back * 2).sum().backward()
    assert torch.equal(values.grad, 2.0 * valid[..., None].expand_as(values))


def test_a_regular_grid():
    packed = grid(3, 4, torch.device("cpu"))
    assert packed.bounds.tolist() == [0, 4, 8, 12] and packed.longest == 4


COMPILE = """
import json, sys
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from mrt5cli.models.kernels import tiles, varlen

FLOATS = {"lse", "excess", "rel", "gate", "delta", "d_rel", "d_gate", "d_excess"}
INTEGERS = {"pos_q", "pos_k", "cu_q", "cu_k"}
NUMBERS = {"total_q", "total_k", "far", "heads", "blocks", "replicas"}
width, name, capability = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
dtype = getattr(torch, name)
shared = {}
for program in ("forward", "backward_queries", "backward_keys"):
    kernel = getattr(tiles, program)
    cut = varlen.tiles_for(width, dtype)[program != "forward"]
    constants = {
        "HAS_REL": True, "REL_GRAD": True, "HAS_GATE": True, "HAS_CEILING": True, "ONE": True,
        "PRECISION": "ieee", "WIDTH": width, "PADDED": varlen.padded_width(width),
        "BLOCK_Q": cut.queries, "BLOCK_K": cut.keys,
    }
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    values = "*bf16" if dtype == torch.bfloat16 else "*fp32"
    types = {
        key: "constexpr" if key in constants
        else "*fp32" if key in FLOATS
        else "*i32" if key in INTEGERS
        else "fp32" if key == "ceiling"
        else "i32" if key in NUMBERS or key.startswith("stride")
        else values
        for key in kernel.arg_names
    }
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, key in enumerate(types) if types[key][0] == "*" or key.startswith("stride")
    }
    built = compile(
        ASTSource(kernel, types, constants, aligned), target=GPUTarget("cuda", capability, 32),
        options={"num_warps": cut.warps, "num_stages": cut.stages},
    )
    shared[program] = built.metadata.shared
print(json.dumps(shared))
"""
LEAST_SHARED = 99 * 1024
"""Bytes of shared memory a block may use on the smallest GPUs with bfloat16 (compute capability 8.6)."""


@pytest.mark.parametrize("dtype, width", [("bfloat16", 64), ("float32", 64), ("bfloat16", 128)])
def test_tiles_fit(tmp_path, dtype: str, width: int):
    """The compiler takes every kernel, with everything on, and it fits: no GPU is needed for that."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(width), dtype, "80"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    shared = json.loads(done.stdout)
    assert len(shared) == 3 and max(shared.values()) <= LEAST_SHARED, shared


def test_tiles_are_ones_a_matrix_unit_takes():
    for dtype in (torch.float32, torch.bfloat16):
        for width in (1, 10, 64, 128):
            for tile in tiles_for(width, dtype):
                assert isinstance(tile, Tiles) and min(tile.queries, tile.keys) >= 16
