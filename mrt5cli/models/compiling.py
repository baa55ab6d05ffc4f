"""torch.compile where it holds for every length: the feed-forward half of each block.

That half is three quarters of a forward pass, has one shape that varies, and is one graph for all blocks of a
stack. Compiled with its attention, a block is another graph for every combination of gate, mask, packing and
position bias, and ends at the limit of recompilations, uncompiled.
"""

from __future__ import annotations

from transformers import T5ForConditionalGeneration


def compile_blocks(model: T5ForConditionalGeneration, backend: str = "inductor") -> None:
    """Compile the feed-forward half of each encoder and decoder block, in place; names of weights stay.

    Nothing is compiled before the first call, and no further length makes it compile again.

    Args:
        model: of ours, or a T5.
        backend: of torch.compile.
    """
    for stack in (model.encoder, model.decoder):
        for block in stack.block:
            *_, feed_forward = block.get_submodule("layer").children()
            feed_forward.compile(dynamic=True, backend=backend)
