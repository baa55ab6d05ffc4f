"""Figures, drawn with matplotlib, which is an extra: a module here is imported only where it is there.

Each module draws one kind of figure from plain numbers and knows nothing of runs. `style` is the one look of
all of them, and how a drawing becomes SVG.
"""

from __future__ import annotations

import importlib.util


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


HOW_TO_DRAW = "pip install 'mrt5cli[plots]'"
"""What to type where it is not."""
