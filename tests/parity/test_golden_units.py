"""softmax1 and relative-position buckets on their own."""

from __future__ import annotations

import pytest
import torch
from conftest import GOLDEN, read_case
from transformers.models.t5.modeling_t5 import T5Attention

from mrt5cli.models.attention import softmax1

_, TENSORS = read_case(GOLDEN / "cases/units/units.json")


@pytest.mark.parametrize("case", ["a", "b"])
def test_softmax1(case: str):
    scores = TENSORS[f"softmax1.{case}.in"].clone().requires_grad_()
    weights = softmax1(scores)
    torch.testing.assert_close(weights, TENSORS[f"softmax1.{case}.out"], atol=1e-6, rtol=1e-5)
    (weights * TENSORS[f"softmax1.{case}.weight"]).sum().backward()
    expected = TENSORS[f"softmax1.{case}.grad_of_weighted_sum"]
    torch.testing.assert_close(scores.grad, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("buckets, distance", [(32, 128), (16, 64), (8, 20)])
@pytest.mark.parametrize("direction", ["bidirectional", "causal"])
def test_buckets(buckets: int, distance: int, direction: str):
    found = T5Attention._relative_position_bucket(
        TENSORS["bucket.relative_position"],
        bidirectional=direction == "bidirectional",
        num_buckets=buckets,
        max_distance=distance,
    )
    assert torch.equal(found, TENSORS[f"bucket.{buckets}.{distance}.{direction}"])
