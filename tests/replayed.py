"""What a CUDA graph does with a function, on any device: its operations, recorded once and done again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

WAITS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero", "_unique2", "unique_dim")
"""Operations whose result, or its size, the host would have to wait for; none can be recorded."""


class Recording(TorchDispatchMode):
    """The operations of a call: numbers are those of that call, tensors that it did not make are read again.

    A step that asked the device something, made its decisions in Python or read a buffer that another batch
    replaces would fail, or go wrong, as it would in a graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, list[Any], Any, list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func.overloadpacket.__name__ in ("index", "index_put", "index_put_") and any(
            part is not None and part.dtype in (torch.bool, torch.uint8) for part in args[1]
        )
        assert func.overloadpacket.__name__ not in WAITS and not by_mask, func
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, *tree_flatten((args, kwargs or {})), tree_leaves(result)))
        return result

    def replay(self) -> None:
        """Do it all again."""
        made: dict[int, Tensor] = {}
        for func, given, shape, before in self.operations:
            args, kwargs = tree_unflatten([made.get(id(leaf), leaf) for leaf in given], shape)
            now = tree_leaves(func(*args, **kwargs))
            made.update(zip(map(id, before), now, strict=True))


def recorded(step: Any) -> Callable[[], None]:
    """For `greedy.recorded`, which works on a GPU."""
    owner: Any = step.__self__
    owner.position.zero_()  # recording computes nothing there, but does here
    with Recording() as recording:
        step()
    return recording.replay
