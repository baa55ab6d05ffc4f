"""Choose the likeliest of a task's possible targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from mrt5cli.byte_tokens import encode
from mrt5cli.models import MrT5EncoderOutput, MrT5ForConditionalGeneration


def choose(
    model: MrT5ForConditionalGeneration, encoded: MrT5EncoderOutput, choices: Sequence[str], rows: int
) -> NDArray[np.int64]:
    """(B,) index of the choice with the highest probability under the model, EOS included.

    Args:
        model: in eval mode.
        encoded: the encoder's output for B = `rows` sources, shared by all choices.
    """
    device = next(model.parameters()).device
    scores = []
    for choice in choices:
        labels = torch.from_numpy(encode(choice, add_eos=True)).to(device).expand(rows, -1).contiguous()
        logits = model(encoder_outputs=encoded, labels=labels).logits
        nats = logits.float().log_softmax(-1).gather(-1, labels[..., None])
        scores.append(nats.double().sum(dim=(1, 2)))
    return torch.stack(scores, dim=1).argmax(dim=1).cpu().numpy()
