"""The model's own source as the flat files that transformers' remote code wants.

transformers copies the `.py` files of a checkpoint that import each other with a single dot, all from one
folder, and refuses to load them when one imports a package that is not installed. Our modules sit in packages
and import each other by full name. They are therefore rewritten when a model is exported, from the source
that is running: there is no second copy to fall behind.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import mrt5cli
from mrt5cli.models.attention import IMPLEMENTATIONS

PACKAGE = "mrt5cli.models"
CONFIGURATION, MODELING = "configuration_mrt5", "modeling_mrt5"
ENTRIES = {f"{PACKAGE}.config": CONFIGURATION, f"{PACKAGE}.mrt5": MODELING}
"""What transformers looks up by name, under the names it is used to; the rest is what these import."""

BYTE_TOKENS = "mrt5cli.byte_tokens"
"""The one module from outside the package that it may import."""

INSTALLED = frozenset({"torch", "transformers", "huggingface_hub", "numpy", "triton"})
"""What whoever loads the model has: transformers needs the third and the fourth itself; torch for CUDA brings
the last, which is imported under a guard, and only there."""

TRANSFORMERS = (5, 17)
"""The oldest transformers these files run on; pyproject.toml says the same of the toolkit."""

# Older versions would fail at the first name they do not have, which tells nobody what to do.
GUARD = """\
import transformers

if tuple(int(part) for part in transformers.__version__.split(".")[:2]) < {oldest}:
    raise ImportError(
        f"this model needs transformers {dotted} or newer, and {{transformers.__version__}} is installed; "
        "update it: pip install -U transformers"
    )
"""


def source_files() -> dict[str, str]:
    """File names and contents of everything `MrT5ForConditionalGeneration` is made of.

    Raises:
        RuntimeError: a module of ours does something that cannot be rewritten; a mistake of ours, not the
            user's.
    """
    sources: dict[str, str] = {}
    waiting = list(ENTRIES)
    while waiting:
        module = waiting.pop()
        if module not in sources:
            sources[module] = _read(module)
            waiting += [node.module or "" for node in _own_imports(module, ast.parse(sources[module]))]
    digest = hashlib.sha256("".join(sources[module] for module in sorted(sources)).encode()).hexdigest()[:12]
    return {
        f"{flat_name(module)}.py": _rewrite(module, sources[module], digest) for module in sorted(sources)
    }


def flat_name(module: str) -> str:
    """`mrt5cli.models.shorteners.gate` -> `shorteners_gate_mrt5`."""
    below = module.removeprefix(f"{PACKAGE}.").removeprefix("mrt5cli.").replace(".", "_")
    return ENTRIES.get(module, f"{below}_mrt5")


def _read(module: str) -> str:
    spec = find_spec(module)
    source = spec.loader.get_source(module) if spec and spec.loader else None  # type: ignore[attr-defined]
    if not source:
        raise RuntimeError(f"the source of {module} is not to be had, so the model cannot be exported")
    return str(source)


def _own_imports(module: str, tree: ast.Module) -> Iterator[ast.ImportFrom]:
    """The imports of one module of ours by another, each checked to be of the one form that can be flat."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        elif isinstance(node, ast.ImportFrom):
            raise RuntimeError(f"{module}, line {node.lineno}: relative import; write the full name")
        else:
            continue
        for name in names:
            top = name.split(".")[0]
            if top == "mrt5cli":
                ours = name.startswith(f"{PACKAGE}.") or name == BYTE_TOKENS
                if isinstance(node, ast.Import) or not ours:
                    raise RuntimeError(
                        f"{module}, line {node.lineno}: imports {name}; an exported model can only say "
                        f"`from {PACKAGE}.<module> import <name>`"
                    )
                _check_not_submodules(module, node)
                yield node
            elif top not in INSTALLED and top not in sys.stdlib_module_names:
                raise RuntimeError(
                    f"{module}, line {node.lineno}: imports {top}, which transformers does not bring"
                )


def _check_not_submodules(module: str, node: ast.ImportFrom) -> None:
    """`from package import module` needs a package, and there is none in a flat folder."""
    spec = find_spec(node.module or "")
    if spec is None or spec.submodule_search_locations is None:
        return
    for alias in node.names:
        if find_spec(f"{node.module}.{alias.name}") is not None:
            raise RuntimeError(
                f"{module}, line {node.lineno}: imports the module {alias.name} from its package; import "
                "the names it defines"
            )


def _rewrite(module: str, source: str, digest: str) -> str:
    tree = ast.parse(source)
    lines = source.splitlines(keepends=True)
    for node in _own_imports(module, tree):
        line, absolute = lines[node.lineno - 1], f"from {node.module} import"
        if line.count(absolute) != 1:
            raise RuntimeError(f"{module}, line {node.lineno}: expected one `{absolute}` on the line")
        lines[node.lineno - 1] = line.replace(absolute, f"from .{flat_name(node.module or '')} import")
    if module in ENTRIES:
        dotted = ".".join(str(part) for part in TRANSFORMERS)
        lines.insert(_first_statement(tree), GUARD.format(oldest=TRANSFORMERS, dotted=dotted) + "\n")
    header = (
        f"# MrT5 toolkit, mrt5cli {mrt5cli.__version__}, Apache License 2.0.\n"
        f"# Written by `mrt5 convert --to hub` from {module}; change that, not this.\n"
    )
    return header + _own_attention_names(module, tree, "".join(lines), digest)


def _first_statement(tree: ast.Module) -> int:
    """Number of lines before the first statement that is neither docstring nor `__future__` import."""
    for node in tree.body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not docstring and not (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            return node.lineno - 1
    raise RuntimeError("a module without statements")


def _own_attention_names(module: str, tree: ast.Module, source: str, digest: str) -> str:
    """Attention functions under names that only these very files use.

    transformers keeps them in one table for the whole process. Under one name the last version loaded would
    serve the models of all others, and what it does not know, a new kind of gate say, it would leave out.
    """
    for name in IMPLEMENTATIONS.values():
        meant = sum(isinstance(node, ast.Constant) and node.value == name for node in ast.walk(tree))
        if source.count(f'"{name}"') != meant:
            raise RuntimeError(f'{module}: "{name}" is written in a way that cannot be told from other text')
        source = source.replace(f'"{name}"', f'"{name}_{digest}"')
    return source
