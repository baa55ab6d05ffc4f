"""Reading possibly damaged JSON with a one-sentence error for each failure; replacing NaN for writing."""

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
"""Maximum bytes of a JSON file such as a result, a state or a configuration."""
TOO_MANY_DIGITS = f"it contains a whole number of more than {sys.get_int_max_str_digits():,} digits"


def parse(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or contains too large a number.
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
    """Copy a tree with NaN and infinities, which JSON cannot represent, replaced by None."""
    if isinstance(tree, Mapping):
        return {name: finite(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def read_object(path: Path, hint: str | None = None) -> dict[str, Any]:
    """Read a JSON object from a file.

    Args:
        hint: what to do if the file is unreadable.

    Raises:
        UserError: it cannot be read, or does not contain an object.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would block
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
