"""The kinds of `mrt5 bench` whose cases are calls on one set of weights, and whose memory can be measured."""

from mrt5cli.benchmark.attention import attention
from mrt5cli.benchmark.forward import Builder, forward
from mrt5cli.benchmark.generation import generate
from mrt5cli.benchmark.products import products
from mrt5cli.benchmark.training_step import train

BUILDERS: dict[str, Builder] = {
    "forward": forward,
    "train": train,
    "generate": generate,
    "attention": attention,
    "products": products,
}
