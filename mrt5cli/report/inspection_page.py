"""The page of `mrt5 inspect-deletions --html`: texts with each byte's gate value, and movable thresholds.

Each element is a grapheme cluster, so that marks stay on their letters and scripts join; bytes are what is
counted. The page stores every gate value as float32, and its script counts by the rule of
`InspectedRow.deleted_at`.
"""

from __future__ import annotations

import unicodedata
from base64 import b64encode
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mrt5cli.analysis.deletions import InspectedRow
from mrt5cli.analysis.inspection import Inspection
from mrt5cli.data.characters import Character, clusters, shown
from mrt5cli.metrics.counts import MARKERS, Ratio
from mrt5cli.metrics.results import Json
from mrt5cli.report.html import render
from mrt5cli.text import percent, visible

if TYPE_CHECKING:
    from markupsafe import Markup

STRIP = 32
"""Clusters per strip of a heat map: as many as fit on a sheet of paper."""
BINS = 60
WHITE = {" ": "sp", "\n": "nl", "\t": "tab"}
"""CSS classes of white space, which is drawn with a visible mark."""
COUNTED, NEEDLESS = 1, 2
"""Bits per byte: whether the target decides about it, and whether the target does not need it."""


def inspection_page(
    models: Sequence[Inspection], labels: Sequence[str], *, history_of: str | None = None
) -> str:
    """The HTML of a self-contained page.

    Args:
        models: each model's deletions from the same rows.
        labels: the models' names on the page.
        history_of: the run whose checkpoints the models are, drawn as a heat map; None for separate models.
    """
    labels = [visible(label, lines=False) for label in labels]
    rows = models[0].rows
    drawn = [clusters(row.characters) for row in rows]
    looks = [[_look(cluster) for cluster in row] for row in drawn]
    names = " and ".join(labels) if len(labels) < 3 else f"{len(labels)} models"
    verb = "pool" if all(one.pools for one in models) else "delete"
    title = f"What {names} {verb}" + "s" * (len(models) == 1)
    if history_of is not None:
        title = f"What {visible(history_of, lines=False)} {verb}s, by step"
    content = {
        "title": title,
        "history": history_of is not None,
        "models": [_model(one, label) for one, label in zip(models, labels, strict=True)],
        "scales": sorted({_lowest(one) for one in models if not one.pools}),
        "marks": {mark for row in looks for _, mark in row},
        "rows": [
            {
                "label": row.label or "text",
                "target": None if row.target is None else shown(row.target, sentinels=row.sentinels),
                "strips": _strips(
                    models, place, drawn[place], looks[place], STRIP if history_of else len(drawn[place])
                ),
                "rates": [percent(one.rows[place].rate.value, 1) for one in models],
            }
            for place, row in enumerate(rows)
        ],
        "tables": [
            _table("kind of byte", "kinds", [one.kinds for one in models]),
            _table("script", "scripts", [one.scripts for one in models]),
        ],
        "data": _data(models, labels, drawn),
    }
    return render("inspection.html.j2", content)


def _model(found: Inspection, label: str) -> Json:
    """The values that the page prints about a model."""
    agreed = found.agreement
    return {
        "label": label,
        "pools": found.pools,
        "movable": found.movable,
        "fixed": found.fixed or "deletes by a rule that its gate values alone do not determine",
        "threshold": found.threshold,
        "exact": repr(found.threshold).removesuffix(".0"),
        "lowest": _lowest(found),
        "requested": None if found.requested is None else f"{100 * found.requested:.4g}",
        "rate": percent(found.rate.value, 1),
        "deleted": f"{int(found.rate.total):,}",
        "positions": f"{found.rate.count:,}",
        "agreement": None if agreed is None else [percent(share, 1) for share in agreed],
        "histogram": _histogram(found) if found.movable else "",
    }


def _lowest(found: Inspection) -> float:
    """The lower bound of the gate values; without one, a round number below all of them."""
    gates = [row.gate for row in found.rows if row.gate is not None]
    if gates and not np.isfinite(found.lowest):
        return float(np.floor(min(gate.min() for gate in gates)))
    return found.lowest if gates else 0.0


def _histogram(found: Inspection) -> str:
    """The histogram of gate values from the lowest to 0 as an SVG path of height 1, logarithmic because a
    threshold usually separates rare values."""
    values = np.concatenate([row.gate for row in found.rows if row.gate is not None])
    counts, _ = np.histogram(values, BINS, (_lowest(found), 0))
    heights = np.log1p(counts) / np.log1p(counts.max())
    return f"M0 1{''.join(f'V{1 - height:.2f}h1' for height in heights)}V1z"


def _table(title: str, kind: str, tables: Sequence[dict[str, Ratio]]) -> Json:
    return {
        "title": title,
        "kind": kind,
        "lines": [
            {
                "name": name,
                "count": f"{of.count:,}",
                "deleted": [
                    (f"{int(table[name].total):,}", percent(table[name].value, 1)) for table in tables
                ],
            }
            for name, of in tables[0].items()
        ],
    }


# --- text ------------------------------------------------------------------------------------------------


def _look(cluster: Sequence[Character]) -> tuple[str, str]:
    """A cluster as HTML, and a CSS class: white space, "c" for a name in place of a character, or none."""
    from markupsafe import escape

    first = cluster[0]
    if len(cluster) == 1 and first.text in WHITE:
        return str(first.text), WHITE[first.text]
    if first.visible.startswith("⟨"):
        return str(escape(" ".join(one.visible.strip("⟨⟩") for one in cluster))), "c"
    text = "".join(one.text or "" for one in cluster)
    return str(escape("◌" * first.combines + text)), ""


def _strips(
    models: Sequence[Inspection],
    place: int,
    row: Sequence[tuple[Character, ...]],
    looks: Sequence[tuple[str, str]],
    width: int,
) -> list[list[Markup]]:
    """A row as each model leaves it, in strips of `width` clusters."""
    from markupsafe import Markup

    models_elements = [list(_elements(one, one.rows[place], row, looks)) for one in models]
    return [
        [Markup("".join(elements[start : start + width])) for elements in models_elements]
        for start in range(0, len(row), width)
    ]


def _elements(
    found: Inspection,
    row: InspectedRow,
    drawn: Sequence[tuple[Character, ...]],
    looks: Sequence[tuple[str, str]],
) -> Iterator[str]:
    """One element per cluster, with its shade and marks."""
    shares = None if row.gate is None else np.clip(row.gate / min(_lowest(found), -1e-9), 0, 1)
    segments = np.cumsum(row.starts) - 1
    for cluster, (text, mark) in zip(drawn, looks, strict=True):
        where = slice(cluster[0].start, cluster[-1].start + len(cluster[-1].ids))
        states, attributes = [mark] if mark else [], " dir=ltr" if mark == "c" else ""
        if shares is None:
            states += ["s"] * bool(where.start and row.starts[where.start])
            states += ["n"] * bool(segments[where.start] % 2)
            states += ["x"] * bool(row.starts[where][1:].any())
        else:
            gone = row.deleted[where]
            states += ["d" if gone.all() else "p"] if gone.any() else []
            attributes += f" style=--g:{shade}" if (shade := round(100 * float(shares[where].mean()))) else ""
        if states:
            attributes = f' class="{" ".join(states)}"{attributes}'
        yield f"<i{attributes}>{text}</i>"


# --- data ------------------------------------------------------------------------------------------------


def _data(
    models: Sequence[Inspection], labels: Sequence[str], drawn: Sequence[list[tuple[Character, ...]]]
) -> Json:
    """The data of the page's script; arrays are little-endian, in base64."""
    rows, kinds, scripts = models[0].rows, list(models[0].kinds), list(models[0].scripts)
    texts = {one.text for row in drawn for cluster in row for one in cluster if one.text is not None}
    return {
        "names": {text: unicodedata.name(text, "") for text in sorted(texts)},
        "kinds": kinds,
        "scripts": scripts,
        "rows": [
            {
                "label": row.label,
                "ids": _packed(row.ids, "<u2"),
                # Bytes of each character, a comma between clusters.
                "sizes": ",".join("".join(str(len(one.ids)) for one in cluster) for cluster in clustered),
                "kinds": _packed([kinds.index(kind) for kind in row.kinds], "u1"),
                "scripts": _packed([scripts.index(name) for name in row.scripts], "u1"),
                "target": None if row.deletable is None else _packed(_target_says(row), "u1"),
            }
            for row, clustered in zip(rows, drawn, strict=True)
        ],
        "models": [
            {
                "label": label,
                "threshold": one.threshold,
                "lowest": _lowest(one),
                "movable": one.movable,
                "rows": [
                    {
                        "gate": None if row.gate is None else _packed(row.gate, "<f4"),
                        "spare": row.spare,
                        "gone": None if one.movable else _packed(row.deleted, "u1"),
                    }
                    for row in one.rows
                ],
            }
            for one, label in zip(models, labels, strict=True)
        ],
    }


def _target_says(row: InspectedRow) -> NDArray[np.uint8]:
    counted = ~np.isin(row.ids, MARKERS)
    return (COUNTED * counted + NEEDLESS * np.asarray(row.deletable)).astype(np.uint8)


def _packed(values: NDArray[np.generic] | Sequence[int], kind: str) -> str:
    return b64encode(np.asarray(values).astype(kind).tobytes()).decode()
