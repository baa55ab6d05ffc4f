"""Memory of a training step, counted before it is made.

What is held between forward and backward is counted part by part, as the model's parts save it: attention in
full, the norms' inputs, two of the four tensors of a gated feed-forward layer, what dropout remembers. A test
counts the bytes of a real step beside it. Batches are taken to be full of the longest examples, and soft:
hard deletion needs less. With MRT5_FAST=0 more is held than is said here.

Legend: R source positions of a micro-batch, S those left where positions are pooled, T target positions, D
    model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from mrt5cli.analysis.compute import Sizes
from mrt5cli.recipe import Recipe
from mrt5cli.training.estimates import Lengths, lengths_of

TILES = {False: 2**20, True: 2**25}
"""Scores that are made at once on a CPU and on a GPU where none are kept (`models/fast/fused.py`)."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a training step takes at its peak.

    Attributes:
        weights: in float32, with gradients and Adam's two moments of those that are trained.
        copies: of weight matrices, that products read.
        held: between forward and backward pass.
        temporary: what backward makes on top, at most.
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
        sizes, parameters: of the model.
        trained: parameters that are, where not all of them are.
        batch: examples.
        attention: what it runs by, a name of `models.attention.IMPLEMENTATIONS`.
        processes: that train together.
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
        """Of an example in a soft step."""
        found = lengths_of(self.recipe, self.recipe.task, hard=False)
        return found if self.recipe.model.shortener.pools else found._replace(kept=found.source)

    @property
    def rows(self) -> Lengths:
        """R, S and T."""
        return Lengths(*(self.batch * length for length in self.lengths))

    @property
    def number(self) -> int:
        """Bytes of a number that a product gives."""
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
        """Whether a CPU's own kernel attends."""
        return not self.on_gpu and self.attention != "eager" and not self.drops_weights

    @property
    def changed(self) -> list[str]:
        """Weights with changes by LoRA."""
        lora = self.recipe.training.lora
        return [] if lora is None else [*lora.targets]

    @property
    def scored(self) -> bool:
        return self.recipe.loss.score_coefficient > 0

    # --- parts: bytes that backward needs of them -----------------------------------------------------------

    def norm(self, rows: int, *readers: str) -> int:
        """Its input in float32, a number a row, and its output as the products that follow read it; autocast
        casts it for each. A weight that is not trained needs none."""
        products = sum(self.recipe.training.lora is None or name in self.changed for name in readers)
        casts = products if self.number == 2 and not self.on_gpu else min(products, 1)
        return rows * (4 * self.sizes.d_model + 4 + casts * self.number * self.sizes.d_model)

    def dropped(self, rows: int) -> int:
        """What dropout on (rows, D) in a block remembers: on a CPU its factors, on a GPU a seed."""
        drops = self.recipe.model.dropout > 0 and not self.on_gpu
        return drops * rows * self.number * self.sizes.d_model

    def dropped_at_ends(self, rows: int) -> int:
        """The same of float32 states before the first block or behind the last: on a GPU a mask."""
        return (self.recipe.model.dropout > 0) * rows * (1 if self.on_gpu else 4) * self.sizes.d_model

    def attend(self, queries: int, keys: int, pairs: int, *, scored: bool) -> int:
        """Queries, keys, values, output and, where scores are written out, those."""
        sizes, number = self.sizes, self.number
        held = 2 * number * sizes.inner * (queries + keys)
        if self.attention != "eager":
            again = number * sizes.inner * queries if self.by_flash else 0  # the output with heads joined
            return held + again + 4 * sizes.heads * queries
        dropped = 2 * number if self.drops_weights else 2 if number == 2 else 0
        return held + (4 + dropped) * sizes.heads * pairs + scored * 4 * sizes.inner * (queries + keys)

    def feed_forward(self, rows: int) -> int:
        drops = self.recipe.model.dropout > 0
        if (
            "wo" in self.changed
        ):  # then it is PyTorch's: activation and product are kept, and what dropped them
            return rows * self.sizes.d_ff * (4 * self.number + drops * (1 if self.on_gpu else self.number))
        return rows * self.sizes.d_ff * (2 * self.number + (drops and not self.on_gpu))

    def block(self, *, decodes: bool, rows: int, length: int, scored: bool) -> int:
        """All that a block holds, without recomputation."""
        held = self.norm(rows, *"qkv") + self.attend(rows, rows, rows * length, scored=scored and not decodes)
        held += self.norm(rows, "wi_0", "wi_1") + self.feed_forward(rows) + 2 * self.dropped(rows)
        if decodes:
            source = self.rows.kept
            held += self.norm(rows, "q") + self.dropped(rows)
            held += self.attend(rows, source, rows * self.lengths.kept, scored=scored)
            if self.number == 2:  # the source's states, cast for keys and for values
                held += (1 if self.on_gpu else 2) * 2 * source * self.sizes.d_model
        return held

    def products(self, *, decodes: bool, rows: int) -> int:
        """What products with weights give in a block, and the CPU's attention kernel: kept by "selective"."""
        sizes = self.sizes
        widths = dict.fromkeys("qkv", sizes.inner) | dict.fromkeys(("o", "wo"), sizes.d_model)
        widths |= dict.fromkeys(("wi_0", "wi_1"), sizes.d_ff)
        # A change is a product beside that with the weight.
        widths = {name: width * (1 + (name in self.changed)) for name, width in widths.items()}
        numbers = rows * sum(widths.values())
        if decodes:
            numbers += rows * (widths["q"] + widths["o"]) + self.rows.kept * (widths["k"] + widths["v"])
        kernel = rows * (self.number * sizes.inner + 4 * sizes.heads) * (1 + decodes)
        return numbers * self.number + (kernel if self.by_flash else 0)

    # --- the whole ------------------------------------------------------------------------------------------

    def blocks(self, *, decodes: bool) -> list[int]:
        """What each block of the encoder or decoder holds if nothing is computed again."""
        sizes, (source, kept, target) = self.sizes, self.rows
        if decodes:
            one = self.block(decodes=True, rows=target, length=self.lengths.target, scored=self.scored)
            return [one] * sizes.decoder_layers
        before = self.block(decodes=False, rows=source, length=self.lengths.source, scored=False)
        after = self.block(decodes=False, rows=kept, length=self.lengths.kept, scored=self.scored)
        return [before] * sizes.gate_layer + [after] * (sizes.encoder_layers - sizes.gate_layer)

    def held(self, *, decodes: bool) -> int:
        """What is held of the encoder, or of decoder and head, under the recipe's recomputation."""
        sizes, (source, kept, target) = self.sizes, self.rows
        rows = [target] * sizes.decoder_layers
        if not decodes:
            rows = [source] * sizes.gate_layer + [kept] * (sizes.encoder_layers - sizes.gate_layer)
        blocks = self.blocks(decodes=decodes)
        if self.recompute != "none":
            blocks = [4 * sizes.d_model * each for each in rows]  # what went into each
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
        """Of weights: autocast's in bf16, and on a GPU, in fp32, those of q|k|v and wi_0|wi_1 side by side.
        Blocks that are computed again make them again."""
        if self.recompute != "none":
            return 0
        if self.number == 2:
            return 2 * self.parameters
        sizes = self.sizes
        attentions = 3 * sizes.encoder_layers + 5 * sizes.decoder_layers
        feed_forwards = 2 * (sizes.encoder_layers + sizes.decoder_layers)
        numbers = sizes.d_model * (attentions * sizes.inner + feed_forwards * sizes.d_ff)
        return 4 * numbers if self.on_gpu else 0

    def gathered(self) -> int:
        """Of weights in shards, those that are whole meanwhile, see `training.sharding`: what is no half of a
        block, with its gradients; one half at work with its gradients, and the next."""
        sizes = self.sizes
        feed_forward, attention = 3 * sizes.d_model * sizes.d_ff, 4 * sizes.d_model * sizes.inner
        # The self-attention of each first block has the relative bias, and is whole.
        attentions = sizes.encoder_layers + 2 * sizes.decoder_layers - 2
        feed_forwards = sizes.encoder_layers + sizes.decoder_layers
        rest = self.parameters - feed_forwards * feed_forward - attentions * attention
        return 8 * rest + 12 * max(feed_forward, attention)

    def bias(self, *, decodes: bool) -> int:
        """The position bias of all layers, and a second one where positions are pooled; our kernels look it
        up. The decoder's comes with its buckets and a causal mask."""
        heads, (source, kept, target) = self.sizes.heads, self.lengths
        if self.attention == "triton":
            return 0
        if decodes:
            return (12 + 4 * heads) * target**2
        number = self.number if self.on_gpu else 4
        return number * heads * (source**2 + (kept**2 if kept < source else 0))

    def temporary(self, *, decodes: bool) -> int:
        """The most that backward makes at once in a block, with what it computes again."""
        sizes, (source, kept, target) = self.sizes, self.lengths
        rows, keys = (target, max(target, kept)) if decodes else (source, source)
        scores, rows = self.batch * rows * keys * sizes.heads, self.batch * rows
        of_feed_forward, held = 4 * self.number * rows * sizes.d_ff, self.feed_forward(rows)
        of_attention = (8 + 2 * self.number) * scores
        if self.attention == "triton":
            of_attention = 0
        elif self.attention != "eager":
            of_attention = 16 * min(TILES[self.on_gpu], scores)
        # Attention's turn comes when the feed-forward layer's is over.
        most = max(of_feed_forward, of_attention - held)
        if self.recompute != "none":
            most += max(self.blocks(decodes=decodes)) - 4 * sizes.d_model * rows  # its input is there
            if self.recompute == "selective":
                most -= self.products(decodes=decodes, rows=rows)
        return most

    def memory(self) -> StepMemory:
        """The step at its peak: in the decoder, with all held, or in the encoder's last block."""
        encoder, decoder = self.held(decodes=False), self.held(decodes=True)
        of_encoder = self.temporary(decodes=False)
        of_decoder = self.temporary(decodes=True)
        # Several processes reduce gradients in buckets of their own.
        trained = self.parameters if self.trained is None else self.trained
        weights, copies = 4 * self.parameters + (16 if self.processes > 1 else 12) * trained, self.copies()
        if self.recipe.training.sharding == "fsdp" and self.processes > 1:
            weights, copies = 16 * self.parameters // self.processes, copies + self.gathered()
        temporary = max(of_encoder - decoder, of_decoder)
        return StepMemory(weights, copies, encoder + decoder, max(0, temporary))
