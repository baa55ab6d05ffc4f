"""Counts the memory of a training step before it runs.

The tensors held between the forward and the backward pass are counted module by module, as the model saves
them: all of attention, the inputs of norms, two of the four tensors of a gated feed-forward layer, and the
masks of dropout. A test compares the result with the bytes of a real step. Batches are assumed to contain
only the longest examples, with soft deletion; hard deletion needs less. With MRT5_FAST=0 more is held.

Legend: R source positions of a micro-batch, S those left after pooling, T target positions, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from mrt5cli.analysis.compute import Sizes
from mrt5cli.recipe import Recipe
from mrt5cli.training.estimates import Lengths, lengths_of

TILES = {False: 2**20, True: 2**25}
"""Scores computed at a time on a CPU (False) and a GPU (True) if none are kept (`models/fast/fused.py`)."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a training step needs at its peak.

    Attributes:
        weights: float32 weights, with gradients and Adam's two moments of the trained ones.
        copies: copies of weight matrices that matrix products read.
        held: activations held between the forward and the backward pass.
        temporary: maximum of additional tensors in the backward pass.
    """

    weights: int
    copies: int
    held: int
    temporary: int

    @property
    def total(self) -> int:
        return self.weights + self.copies + self.held + self.temporary


@dataclass(frozen=True)
class Step:
    """A micro-batch of a recipe on a device.

    Attributes:
        sizes: sizes of the model.
        parameters: number of its parameters.
        batch: number of examples.
        attention: implementation, a key of `models.attention.IMPLEMENTATIONS`.
        processes: number of processes that train together.
        trained: number of trained parameters; None: all.
    """

    recipe: Recipe
    sizes: Sizes
    parameters: int
    batch: int
    attention: str
    on_gpu: bool
    processes: int = 1
    trained: int | None = None

    @cached_property
    def lengths(self) -> Lengths:
        """Lengths of an example with soft deletion."""
        found = lengths_of(self.recipe, self.recipe.task, hard=False)
        return found if self.recipe.model.shortener.pools else found._replace(kept=found.source)

    @property
    def rows(self) -> Lengths:
        """R, S and T."""
        return Lengths(*(self.batch * length for length in self.lengths))

    @property
    def number(self) -> int:
        """Bytes of a number returned by a matrix product."""
        return 2 if self.recipe.training.precision == "bf16" else 4

    @property
    def recompute(self) -> str:
        return self.recipe.training.recompute

    @property
    def drops_weights(self) -> bool:
        """Whether attention drops some of its weights."""
        model = self.recipe.model
        return (model.dropout if model.attention_dropout is None else model.attention_dropout) > 0

    @property
    def by_flash(self) -> bool:
        """Whether attention uses PyTorch's flash kernel for CPUs."""
        return not self.on_gpu and self.attention != "eager" and not self.drops_weights

    @property
    def changed(self) -> list[str]:
        """Names of the weights that LoRA changes."""
        lora = self.recipe.training.lora
        return [] if lora is None else [*lora.targets]

    @property
    def scored(self) -> bool:
        return self.recipe.loss.score_coefficient > 0

    # --- bytes that the backward pass needs of each part ----------------------------------------------------

    def norm(self, rows: int, *readers: str) -> int:
        """A norm's float32 input, one number per row, and its output as the following products read it.

        Autocast casts the output once per product. A product with a frozen weight does not keep it.
        """
        products = sum(self.recipe.training.lora is None or name in self.changed for name in readers)
        casts = products if self.number == 2 and not self.on_gpu else min(products, 1)
        return rows * (4 * self.sizes.d_model + 4 + casts * self.number * self.sizes.d_model)

    def dropped(self, rows: int) -> int:
        """What dropout on (rows, D) in a block keeps: its factors on a CPU, a seed on a GPU."""
        drops = self.recipe.model.dropout > 0 and not self.on_gpu
        return drops * rows * self.number * self.sizes.d_model

    def dropped_at_ends(self, rows: int) -> int:
        """The same for float32 states before the first or after the last block; on a GPU, a mask."""
        return (self.recipe.model.dropout > 0) * rows * (1 if self.on_gpu else 4) * self.sizes.d_model

    def attend(self, queries: int, keys: int, pairs: int, *, scored: bool) -> int:
        """Queries, keys, values and output of attention, and its scores if they are materialized."""
        sizes, number = self.sizes, self.number
        held = 2 * number * sizes.inner * (queries + keys)
        if self.attention != "eager":
            again = number * sizes.inner * queries if self.by_flash else 0  # the output with heads joined
            return held + again + 4 * sizes.heads * queries
        dropped = 2 * number if self.drops_weights else 2 if number == 2 else 0
        return held + (4 + dropped) * sizes.heads * pairs + scored * 4 * sizes.inner * (queries + keys)

    def feed_forward(self, rows: int) -> int:
        drops = self.recipe.model.dropout > 0
        # With an adapter on wo, PyTorch's own layer runs, which keeps activation, product and dropout mask.
        if "wo" in self.changed:
            return rows * self.sizes.d_ff * (4 * self.number + drops * (1 if self.on_gpu else self.number))
        return rows * self.sizes.d_ff * (2 * self.number + (drops and not self.on_gpu))

    def block(self, *, decodes: bool, rows: int, length: int, scored: bool) -> int:
        """Everything that a block holds without recomputation."""
        held = self.norm(rows, *"qkv") + self.attend(rows, rows, rows * length, scored=scored and not decodes)
        held += self.norm(rows, "wi_0", "wi_1") + self.feed_forward(rows) + 2 * self.dropped(rows)
        if decodes:
            source = self.rows.kept
            held += self.norm(rows, "q") + self.dropped(rows)
            held += self.attend(rows, source, rows * self.lengths.kept, scored=scored)
            if self.number == 2:  # the encoder's output, cast for keys and for values
                held += (1 if self.on_gpu else 2) * 2 * source * self.sizes.d_model
        return held

    def products(self, *, decodes: bool, rows: int) -> int:
        """Results of a block's weight products and of the CPU's attention kernel, which "selective" keeps."""
        sizes = self.sizes
        widths = dict.fromkeys("qkv", sizes.inner) | dict.fromkeys(("o", "wo"), sizes.d_model)
        widths |= dict.fromkeys(("wi_0", "wi_1"), sizes.d_ff)
        # A LoRA change is a second product.
        widths = {name: width * (1 + (name in self.changed)) for name, width in widths.items()}
        numbers = rows * sum(widths.values())
        if decodes:
            numbers += rows * (widths["q"] + widths["o"]) + self.rows.kept * (widths["k"] + widths["v"])
        kernel = rows * (self.number * sizes.inner + 4 * sizes.heads) * (1 + decodes)
        return numbers * self.number + (kernel if self.by_flash else 0)

    # --- the whole ------------------------------------------------------------------------------------------

    def blocks(self, *, decodes: bool) -> list[int]:
        """The bytes that each block of the encoder or decoder holds without recomputation."""
        sizes, (source, kept, target) = self.sizes, self.rows
        if decodes:
            one = self.block(decodes=True, rows=target, length=self.lengths.target, scored=self.scored)
            return [one] * sizes.decoder_layers
        before = self.block(decodes=False, rows=source, length=self.lengths.source, scored=False)
        after = self.block(decodes=False, rows=kept, length=self.lengths.kept, scored=self.scored)
        return [before] * sizes.gate_layer + [after] * (sizes.encoder_layers - sizes.gate_layer)

    def held(self, *, decodes: bool) -> int:
        """The bytes held by the encoder, or by decoder and head, under the recipe's recomputation."""
        sizes, (source, kept, target) = self.sizes, self.rows
        rows = [target] * sizes.decoder_layers
        if not decodes:
            rows = [source] * sizes.gate_layer + [kept] * (sizes.encoder_layers - sizes.gate_layer)
        blocks = self.blocks(decodes=decodes)
        if self.recompute != "none":
            blocks = [4 * sizes.d_model * each for each in rows]  # the input of each block
            if self.recompute == "selective":
                products = (self.products(decodes=decodes, rows=each) for each in rows)
                blocks = [sum(both) for both in zip(blocks, products, strict=True)]
        first, last = rows[0], rows[-1]
        ends = self.dropped_at_ends(first) + self.dropped_at_ends(last) + self.norm(last)
        if decodes:
            head = target * (self.number * sizes.d_model + (4 + self.number) * sizes.vocabulary)
            return sum(blocks) + ends + head + self.bias(decodes=True)
        gate = 8 * source * sizes.d_model if self.recipe.model.shortener.has_weights else 0
        outputs = 2 if self.attention == "triton" else 1  # packed and padded
        return sum(blocks) + ends + gate + outputs * 4 * last * sizes.d_model + self.bias(decodes=False)

    def copies(self) -> int:
        """Copies of weights: autocast's in bf16; on a GPU in fp32, the concatenated q|k|v and wi_0|wi_1."""
        if self.recompute != "none":  # copies are made again, and not held
            return 0
        if self.number == 2:
            return 2 * self.parameters
        sizes = self.sizes
        attentions = 3 * sizes.encoder_layers + 5 * sizes.decoder_layers
        feed_forwards = 2 * (sizes.encoder_layers + sizes.decoder_layers)
        numbers = sizes.d_model * (attentions * sizes.inner + feed_forwards * sizes.d_ff)
        return 4 * numbers if self.on_gpu else 0

    def gathered(self) -> int:
        """Sharded weights that are gathered at the same time, see `training.sharding`.

        These are everything outside the sharded halves of blocks, with gradients, one half at work with its
        gradients, and the prefetched next half.
        """
        sizes = self.sizes
        feed_forward, attention = 3 * sizes.d_model * sizes.d_ff, 4 * sizes.d_model * sizes.inner
        # The self-attention of each first block contains the relative bias, and is not sharded separately.
        attentions = sizes.encoder_layers + 2 * sizes.decoder_layers - 2
        feed_forwards = sizes.encoder_layers + sizes.decoder_layers
        rest = self.parameters - feed_forwards * feed_forward - attentions * attention
        return 8 * rest + 12 * max(feed_forward, attention)

    def bias(self, *, decodes: bool) -> int:
        """The position bias of all layers, and a second one after pooling; our kernels need none.

        The decoder's is held together with its buckets and a causal mask.
        """
        heads, (source, kept, target) = self.sizes.heads, self.lengths
        if self.attention == "triton":
            return 0
        if decodes:
            return (12 + 4 * heads) * target**2
        number = self.number if self.on_gpu else 4
        return number * heads * (source**2 + (kept**2 if kept < source else 0))

    def temporary(self, *, decodes: bool) -> int:
        """The maximum that a block's backward pass allocates at a time, recomputation included."""
        sizes, (source, kept, target) = self.sizes, self.lengths
        rows, keys = (target, max(target, kept)) if decodes else (source, source)
        scores, rows = self.batch * rows * keys * sizes.heads, self.batch * rows
        of_feed_forward, held = 4 * self.number * rows * sizes.d_ff, self.feed_forward(rows)
        of_attention = (8 + 2 * self.number) * scores
        if self.attention == "triton":
            of_attention = 0
        elif self.attention != "eager":
            of_attention = 16 * min(TILES[self.on_gpu], scores)
        # When attention's turn comes, the feed-forward layer has released its activations.
        most = max(of_feed_forward, of_attention - held)
        if self.recompute != "none":
            most += max(self.blocks(decodes=decodes)) - 4 * sizes.d_model * rows  # its input is held anyway
            if self.recompute == "selective":
                most -= self.products(decodes=decodes, rows=rows)
        return most

    def memory(self) -> StepMemory:
        """The step's peak memory: in the decoder with everything held, or in the encoder's last block."""
        encoder, decoder = self.held(decodes=False), self.held(decodes=True)
        of_encoder, of_decoder = self.temporary(decodes=False), self.temporary(decodes=True)
        # Several processes reduce gradients in additional buckets.
        trained = self.parameters if self.trained is None else self.trained
        weights, copies = 4 * self.parameters + (16 if self.processes > 1 else 12) * trained, self.copies()
        if self.recipe.training.sharding == "fsdp" and self.processes > 1:
            weights, copies = 16 * self.parameters // self.processes, copies + self.gathered()
        temporary = max(of_encoder - decoder, of_decoder)
        return StepMemory(weights, copies, encoder + decoder, max(0, temporary))
