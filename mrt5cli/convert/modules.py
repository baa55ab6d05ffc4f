"""The model's source code as the flat files that transformers' remote code requires.

transformers copies a checkpoint's `.py` files, which must be in one folder and import each other with a
single dot, and refuses to load them if one imports a package that is not installed. Our modules are in
packages and import each other by full name, so an export rewrites the running source: there is no second copy
to maintain.
"""

from __future__ import annotations

import hashlib
import re
from importlib.util import find_spec
from pathlib import Path

import mrt5cli
from mrt5cli.models.attention import IMPLEMENTATIONS

PACKAGE = "mrt5cli.models"
CONFIGURATION, MODELING = "configuration_mrt5", "modeling_mrt5"
ENTRIES = {f"{PACKAGE}.config": CONFIGURATION, f"{PACKAGE}.mrt5": MODELING}
"""The modules that transformers looks up, and their names there; all others are imported by these."""

TRANSFORMERS = (5, 17)
"""The oldest transformers that supports these files; the same as in pyproject.toml."""

OWN_IMPORT = re.compile(r"^( *)from (mrt5cli[\w.]*) import ", re.MULTILINE)
"""The only supported import between modules of the model: names from a module's full name."""

FIRST_IMPORT = re.compile(r"^(?=import |from (?!__future__ ))", re.MULTILINE)
# Older versions would fail at the first missing name, without telling the user what to do.
GUARD = """\
import transformers

if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < {oldest}:
    raise ImportError(
        f"this model needs transformers {dotted} or newer, and {{transformers.__version__}} is installed; "
        "update it: pip install -U transformers"
    )

""".format(oldest=TRANSFORMERS, dotted=".".join(map(str, TRANSFORMERS)))


def source_files() -> dict[str, str]:
    """File names and contents of all modules of `MrT5ForConditionalGeneration`."""
    sources: dict[str, str] = {}
    waiting = list(ENTRIES)
    while waiting:
        module = waiting.pop()
        spec = find_spec(module)
        if module not in sources and spec is not None and spec.origin is not None:
            sources[module] = Path(spec.origin).read_text(encoding="utf-8")
            waiting += [found[2] for found in OWN_IMPORT.finditer(sources[module])]
    sources = dict(sorted(sources.items()))
    digest = hashlib.sha256("".join(sources.values()).encode()).hexdigest()[:12]
    return {f"{flat_name(module)}.py": _flat(module, source, digest) for module, source in sources.items()}


def flat_name(module: str) -> str:
    """`mrt5cli.models.shorteners.gate` -> `shorteners_gate_mrt5`."""
    below = module.removeprefix(f"{PACKAGE}.").removeprefix("mrt5cli.").replace(".", "_")
    return ENTRIES.get(module, f"{below}_mrt5")


def _flat(module: str, source: str, digest: str) -> str:
    """The source of a module as one of the flat files.

    Attention functions get names that are unique to these files, because transformers keeps them in one table
    per process. Under a common name, the last version loaded would serve all models, and ignore what it does
    not know, such as a new kind of gate.
    """
    source = OWN_IMPORT.sub(lambda found: f"{found[1]}from .{flat_name(found[2])} import ", source)
    if module in ENTRIES:
        source = FIRST_IMPORT.sub(lambda _: GUARD, source, count=1)
    for name in IMPLEMENTATIONS.values():
        source = source.replace(f'"{name}"', f'"{name}_{digest}"')
    return (
        f"# MrT5 toolkit, mrt5cli {mrt5cli.__version__}, Apache License 2.0.\n"
        f"# Written by `mrt5 convert --to hub` from {module}; change that, not this.\n{source}"
    )
