"""torch.compile for the feed-forward half of each block, once for every length.

That half is three quarters of a forward pass, has a single dimension that varies, and is one graph for all
blocks of a stack. A complete block needs another graph for every combination of gate, mask, packing and
position bias, reaches the limit of recompilations, and then runs uncompiled.
"""

from __future__ import annotations

from transformers import T5ForConditionalGeneration


def compile_blocks(model: T5ForConditionalGeneration, backend: str = "inductor") -> None:
    """Compile the feed-forward half of each encoder and decoder block, in place; weight names do not change.

    Compilation happens in the first call, and other lengths do not trigger it again.

    Args:
        model: ours, or a plain T5.
        backend: torch.compile's.
    """
    for stack in (model.encoder, model.decoder):
        for block in stack.block:
            *_, feed_forward = block.get_submodule("layer").children()
            feed_forward.compile(dynamic=True, backend=backend)
