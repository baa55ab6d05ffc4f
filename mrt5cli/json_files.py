"""Reading JSON that somebody may have damaged: every way to fail is one sentence. Writing it without NaN."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrt5cli.errors import UserError
from mrt5cli.stand_ins import but
from mrt5cli.text import byte_size

LARGEST_FILE = 2**25
"""Bytes of a file of JSON that is read whole: a result, a state, a configuration."""
TOO_MANY_DIGITS = f"it holds a whole number of more than {sys.get_int_max_str_digits():,} digits"


def parse(text: str | bytes) -> Any:
    """The value that a JSON text stands for.

    Raises:
        ValueError: it is no JSON, or none that Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError as error:
        raise ValueError(TOO_MANY_DIGITS) from error


def finite(tree: Any) -> Any:
    """The same without NaN and infinities, which are not JSON: null."""
    if isinstance(tree, Mapping):
        return {name: finite(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def read_object(path: Path, hint: str | None = None) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        hint: what to do about a file that holds none.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise UserError(f"{path} is not a file", hint)
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE + 1)
        if len(text) > LARGEST_FILE:
            raise UserError(f"{path} cannot be read: it is larger than {byte_size(LARGEST_FILE)}", hint)
        content = parse(text)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", hint) from error
    except ValueError as error:
        raise UserError(f"{path} cannot be read: it is not JSON{but(path) or f': {error}'}", hint) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object", hint)
    return content
