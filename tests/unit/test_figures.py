"""Figures: well-formed, self-contained SVG whose marks are the numbers they were given."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace as Namespace
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mrt5cli.metrics.results import Row
from mrt5cli.report.figures import FIGURES, draw
from mrt5cli.report.figures.style import LOOKS, Drawing, look_of

SVG = "{http://www.w3.org/2000/svg}"
OKABE_ITO = {
    "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7",
    "#000000", "#ffffff", "#8a8a8a", "none",
}  # fmt: skip
RNG = np.random.default_rng(0)
LONG = "a_recipe_with_quite_a_long_name_for_a_legend"


def published(model: str, metric: str, value: float, *, subset="total", recipe=None, **setting) -> Namespace:
    """A published number, compared, as far as figures look at it."""
    row = Namespace(
        model=model, metric=metric, value=value, subset=subset, setting=setting, version="v3", experiment="x"
    )
    return Namespace(row=row, recipe=recipe, value=value, verdict="within")


def run(family: str, *rows: Row) -> Namespace:
    """A run whose evaluation came to these rows."""
    return Namespace(
        family=family, own=lambda number: (rows[-1], None), evaluations=[Namespace(rows=rows)] if rows else []
    )


def drawings(figure: str, runs=None, compared=(), **analyses) -> list[Drawing]:
    experiment = Namespace(id="x", baseline="byt5", seeds=())
    return draw(figure, Namespace(runs=runs or {}, analyses=analyses, experiment=experiment), compared)


def losses(points: list[tuple[str, float, float, bool]]) -> list[Drawing]:
    """The main figure of (family, percent deleted, loss, published)."""
    ours = {
        f"{place}": [run(family, Row("all", 9, bits_per_byte=loss, deletion_rate=rate / 100))]
        for place, (family, rate, loss, theirs) in enumerate(points)
        if not theirs
    }
    theirs = [
        published(family, metric, value, place=place)
        for place, (family, rate, loss, of_paper) in enumerate(points)
        if of_paper
        for metric, value in (("seq_len_reduction", rate), ("bits_per_byte", loss))
    ]
    return drawings("loss_against_reduction", ours, theirs)


def languages(count: int) -> list[Drawing]:
    rows = [Row(f"l{n}", 9, bits_per_byte=1.0, deletion_rate=n / 200) for n in range(count)]
    nothing = Row("a language of which nothing is known", 9)
    known = [
        published("MrT5", "bits_per_byte", 1.3, subset="l0", recipe=LONG),
        published("MrT5", "seq_len_reduction", 51.0, subset="l1", recipe=LONG),
    ]
    return drawings(
        "per_language", {"a/byt5": [run("ByT5", *rows[:2])], LONG: [run("MrT5", *rows, nothing)]}, known
    )


def samples(
    recipe: str, family: str, x: list[float], y: Sequence[float | None], r: float | None
) -> dict[str, object]:
    return {
        "recipe": recipe,
        "seed": 1,
        "family": family,
        "r": r,
        "deleted_percent": x,
        "loss_increase_percent": y,
        "r_nats": None if r is None else r / 2,
        "loss_increase_nats": [None if rise is None else rise / 100 for rise in y],
    }


def pattern(recipe: str, rates: dict[str, float], runs: list[tuple[str, str]]) -> dict[str, object]:
    letters = [{"kind": kind, "rate": rate, "count": 9} for kind, rate in rates.items()]
    shown = [{"runs": runs}] if runs else []
    return {"recipe": recipe, "seed": 1, "task": "t", "examples": 9, "letters": letters, "shown": shown}


def patterns(*models: dict[str, object]) -> list[Drawing]:
    known = [published("MrT5", "deletion_rate[vowel]", 99.0, recipe="gate")]
    return drawings("deletion_patterns", compared=known, deletion_patterns={"models": models})


def learning(recipe: str, *checkpoints: dict[str, object]) -> dict[str, object]:
    return {"recipe": recipe, "seed": 1, "task": "t", "examples": 9, "checkpoints": checkpoints}


def checkpoint(
    step: int, logit: float | None, open_: float | None, closed: float | None
) -> dict[str, object]:
    """A run's gate, with one class unknown, and no separation at first."""
    of = None if logit is None else {"low": logit - 1, "median": logit, "high": logit + 2}
    gradients = {"open": open_, "closed": closed}
    return {
        "step": step, "logits": {"needed": of, "not_needed": None, "markers": of},
        "gradients": dict.fromkeys(("needed", "not_needed", "markers"), gradients),
        "gate_auc": 0.7, "probe_auc": None if step == 1 else 1.0,
    }  # fmt: skip


def saved(family: str, rate: float) -> dict[str, object]:
    """A line of the analyses of time and arithmetic."""
    return {
        "recipe": "r", "family": family, "deletion_rate": rate, "relative": 0.7, "decrease_percent": 30.0,
        "macs_decrease_percent": 38.0, "after_layer": 1, "bits_per_byte": 1.0,
    }  # fmt: skip


SIZES = {"d_model": 64, "encoder_layers": 3, "decoder_layers": 2, "gate_layer": 1}
CURVE = [
    {"deletion_rate": 0.0, "paper_relative": 1.0, "relative": 1.0},
    {"deletion_rate": 1.0, "paper_relative": 0.28, "relative": 0.29},
]
TIMES = {"device_name": "a machine", "batch_size": 8, "runs": [saved("MrT5", 0.5)]}
CURVES = [
    {"law": law, "start": start, "target": 0.5, "curve": {"step": [10, 20], "deletion_rate": [first, 0.5]}}
    for law, start, first in (
        ("p", "open", 0.1),
        ("p", "closed", 0.9),
        ("p", "half", 0.4),
        ("own", "any", 0.5),
    )
]
DIAL = [
    {"recipe": recipe, "seed": seed, "kind": kind, "target": target, "wanted": wanted, "reached": reached,
     "loss": loss + seed / 1000}
    for recipe, kind, target, wanted, reached, loss in (
        ("byt5", "none", None, None, 0.0, 1.0),
        ("mrt5_50", "delete_gate", 0.5, None, 0.51, 1.02),
        ("mrt5_50", "delete_gate", 0.5, 0.9, 0.88, 4.0),
        ("mrt5_90", "delete_gate", 0.9, None, 0.91, 1.2),
        ("mrt5_90", "delete_gate", 0.9, 0.1, 0.12, 7.0),
        ("any_rate", "quantile_gate", None, None, 0.5, 1.03),
        ("any_rate", "quantile_gate", None, 0.5, 0.5, 1.03),
        ("any_rate", "quantile_gate", None, 0.9, 0.9, 1.25),
    )
    for seed in (42, 43)
]  # fmt: skip
DRAWINGS: dict[str, Callable[[], list[Drawing]]] = {
    "loss": lambda: losses(
        [
            ("ByT5", 0.0, 1.0, False), ("MrT5", 30.0, 1.1, False), ("MrT5", 50.0, 1.2, True),
            ("Random", 50.0, 1.5, False), ("something new", 40.0, 1.4, False),
        ]
    ),
    "languages": lambda: languages(3),
    "many-languages": lambda: languages(107),
    "gates": lambda: drawings(
        "gate_placement", compared=[published("MrT5", "bits_per_byte", 1.1, gate_after_layer=3)],
        gate_placement={"runs": [saved("MrT5", 0.5)]},
    ),
    "macs": lambda: drawings(
        "macs", compared=[published("MrT5", "macs_relative_to_byt5", 0.62, delta="0.5")],
        compute={"runs": [saved("MrT5", 0.4)], "curve": CURVE, "sizes": SIZES, "source": 1024, "target": 189},
    ),
    "samples": lambda: drawings(
        "per_sample", compared=[published("MrT5", "pearson_r", 0.2, recipe="one")],
        per_sample={
            "samples": 30,
            "models": [
                samples("one", "MrT5", list(RNG.normal(50, 5, 30)), list(RNG.normal(5, 5, 30)), 0.1),
                samples("flat", "CP", [50.0, 50.0, 50.0], [1.0, 2.0, 3.0], None),
                *(samples(f"r{n}", "Random", [1.0, 2.0], [1.0, n], 1.0) for n in range(7)),
            ],
        },
    ),
    "samples-in-nats": lambda: drawings(
        "per_sample", per_sample={
            "samples": 3000,
            "models": [
                samples("one", "MrT5", list(RNG.normal(50, 5, 3000)), [None, *RNG.normal(5, 5, 2999)], 0.1),
            ],
        },
    ),
    "patterns": lambda: patterns(
        pattern("gate", {"vowel": 1.0, "consonant": 0.0}, [("a", "deleted"), ("$", "kept")]),
        pattern(LONG, {"vowel": 0.5}, [("some", "kept"), (" text" * 40, "deleted")]),
    ),
    "patterns-without-text": lambda: patterns(pattern("gate", {"vowel": 1.0}, [])),
    "laws": lambda: drawings("settling", settling={"within": 1.0, "runs": CURVES}),
    "dial": lambda: drawings("any_rate", dial={"points": DIAL}),
    "learning": lambda: drawings(
        "gate_training",
        gate_training={
            "models": [
                learning("a/gate", checkpoint(1, 3.0, 0.5, None), checkpoint(2, -3.0, None, 1e-9)),
                learning("a/gate", checkpoint(1, 2.0, 0.4, 0.0)),
                learning(LONG, checkpoint(7, None, 0.0, None)),
            ]
        },
    ),
    "time": lambda: drawings("runtime", runtime=TIMES),
}  # fmt: skip


def test_every_figure_is_drawn_here_and_without_numbers_there_is_none() -> None:
    assert {name for name in FIGURES if drawings(name)} == set()
    drawn = {drawing.name.removeprefix("x-") for make in DRAWINGS.values() for drawing in make()}
    assert {name.removesuffix("-t") for name in drawn} == set(FIGURES)


@pytest.fixture(scope="module", params=DRAWINGS)
def drawing(request: pytest.FixtureRequest) -> Drawing:
    [found] = DRAWINGS[request.param]()
    return found


def test_a_drawing_is_one_svg_that_needs_nothing_else(drawing: Drawing) -> None:
    for text in (drawing.svg, drawing.inline):
        root = ET.fromstring(text)
        assert root.tag == f"{SVG}svg"
        assert "viewBox" in root.attrib
        links = re.findall(r'(?:href|src)="([^"]*)"', text)
        assert all(link.startswith("#") for link in links)
        assert "@import" not in text
        assert "<image" not in text  # vectors only


def test_ids_carry_the_drawings_name_and_every_reference_is_there(drawing: Drawing) -> None:
    ids = re.findall(r'\bid="([^"]*)"', drawing.inline)
    assert all(one.startswith(f"{drawing.name}-") for one in ids)
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="|url\()#([^")]*)', drawing.inline)
    assert set(used) <= set(ids)


def test_colours_are_okabe_and_itos(drawing: Drawing) -> None:
    found = {
        colour.lower() for colour in re.findall(r"(?:fill|stroke): ?(#[0-9a-fA-F]{6}|none)", drawing.svg)
    }
    assert found - {one.lower() for one in OKABE_ITO} == set()


def test_in_a_page_it_is_an_image_with_a_caption(drawing: Drawing) -> None:
    assert drawing.inline.startswith('<svg role="img" aria-label="')
    assert drawing.svg.startswith("<?xml")


def test_text_stays_text(drawing: Drawing) -> None:
    words = " ".join("".join(element.itertext()) for element in ET.fromstring(drawing.svg).iter(f"{SVG}text"))
    assert re.search(r"[a-z]{4}", words)


def test_the_same_numbers_are_the_same_drawing() -> None:
    assert DRAWINGS["loss"]() == DRAWINGS["loss"]()
    assert "<dc:date>" not in DRAWINGS["loss"]()[0].svg


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "ground"), [("light", 255), ("dark", 0)])
def test_a_file_of_its_own_suits_dark_pages(browser: Any, scheme: str, ground: int, tmp_path: Path) -> None:
    """A picture in another page; within ours the page decides."""
    [drawing] = DRAWINGS["loss"]()
    (tmp_path / "it.svg").write_text(drawing.svg, encoding="utf-8")
    corners = []
    for shown in ('<img src="it.svg">', drawing.inline):
        (tmp_path / "page.html").write_text(f'<body style="margin: 0">{shown}', encoding="utf-8")
        page = browser.new_page(color_scheme=scheme)
        page.goto((tmp_path / "page.html").as_uri())
        with Image.open(io.BytesIO(page.screenshot())) as picture:
            corners.append(picture.convert("RGB").getpixel((2, 2)))
        page.close()
    assert corners == [(ground,) * 3, (255,) * 3]


def test_captions_are_escaped() -> None:
    found = Drawing("n", 'a < b & "c"', DRAWINGS["loss"]()[0].svg).inline
    assert ET.fromstring(found).attrib["aria-label"] == 'a < b & "c"'


def test_samples_are_in_percent_beside_published_numbers_and_else_in_nats() -> None:
    [theirs], [ours] = DRAWINGS["samples"](), DRAWINGS["samples-in-nats"]()
    assert "over ByT5 (%)" in theirs.svg
    assert "r = 0.10" in theirs.svg
    assert "over ByT5 (nats)" in ours.svg
    assert "r = 0.05" in ours.svg
    assert "1,000 evenly spaced samples are drawn" in ours.caption
    assert "evenly spaced" not in theirs.caption
    assert max(path.attrib["d"].count("M") for path in ET.fromstring(ours.svg).iter(f"{SVG}path")) in (
        999,
        1000,
    )


def test_titles_of_panels_that_are_repeated_stand_below_each_other() -> None:
    document = {
        "samples": 3,
        "models": [
            samples("a_long_name_of_a_recipe", "MrT5", [1.0, 2.0, 3.0], [0.1, 0.2, 0.4], 1.8) | {"seed": seed}
            for seed in (1, 2, 3)
        ],
    }
    experiment = Namespace(id="x", baseline="byt5", seeds=(1, 2, 3))
    results = Namespace(runs={}, analyses={"per_sample": document}, experiment=experiment)
    [drawing] = draw("per_sample", results, ())
    words = [found.text for found in ET.fromstring(drawing.svg).iter(f"{SVG}text")]
    assert words.count("a_long_name_of_a_recipe") == 3 and "seed 2, r = 0.90" in words


def test_losses_below_byt5_have_marks_too() -> None:
    low = [point | {"loss": point["loss"] - 0.6 * (point["kind"] != "none")} for point in DIAL]
    [drawing] = drawings("any_rate", dial={"points": low})
    words = [found.text for found in ET.fromstring(drawing.svg).iter(f"{SVG}text")]
    assert {"\N{MINUS SIGN}0.1", "0.1"} <= set(words)


def test_samples_none_of_which_has_a_percentage_leave_the_panel_empty() -> None:
    known = [published("MrT5", "pearson_r", 0.2, recipe="one")]
    document = {"samples": 3, "models": [samples("one", "MrT5", [1.0, 2.0, 3.0], [None] * 3, None)]}
    [drawing] = drawings("per_sample", compared=known, per_sample=document)
    assert "r = none" in drawing.svg


def test_every_family_has_a_colour_and_a_marker_of_its_own() -> None:
    assert len({look.colour for look in LOOKS.values()}) == len(LOOKS)
    assert len({look.marker for look in LOOKS.values()}) == len(LOOKS)
    assert look_of("something new") not in LOOKS.values()


def test_settings_of_the_caller_come_back() -> None:
    before = dict(matplotlib.rcParams)
    DRAWINGS["loss"]()
    assert dict(matplotlib.rcParams) == before


def marks(svg: str, path: str) -> list[tuple[float, float]]:
    """Where an SVG uses markers inside the group whose id ends so."""
    [group] = [g for g in ET.fromstring(svg).iter(f"{SVG}g") if g.attrib.get("id", "").endswith(path)]
    uses = group.iter(f"{SVG}use")
    return [(float(use.attrib["x"]), float(use.attrib["y"])) for use in uses]


def test_marks_lie_where_the_numbers_are() -> None:
    """Places of marks are a straight line of the numbers: the axes are linear and nothing is swapped."""
    [drawing] = losses([("MrT5", x, y, True) for x, y in ((10.0, 1.0), (20.0, 3.0), (40.0, 2.0))])
    svg = drawing.svg
    found = [
        marks(svg, f"line2d_{number}")
        for number in range(1, 60)
        if f'id="{drawing.name}-line2d_{number}"' in svg and len(marks(svg, f"line2d_{number}")) == 3
    ]
    [placed] = found
    x, y = np.array(placed).T
    assert np.corrcoef(x, [10, 20, 40])[0, 1] == pytest.approx(1.0)
    assert np.corrcoef(y, [1, 3, 2])[0, 1] == pytest.approx(-1.0)  # up the page is down in SVG


@settings(max_examples=8, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([*LOOKS, "other"]), st.floats(0, 100), st.floats(1e-5, 1e3), st.booleans()),
        min_size=1,
        max_size=30,
    )
)
def test_any_points_can_be_drawn(points: list[tuple[str, float, float, bool]]) -> None:
    [drawing] = losses(points)
    ET.fromstring(drawing.svg)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=20))
@settings(max_examples=8, deadline=None)
def test_any_text_can_be_drawn(text: str) -> None:
    [drawing] = patterns(pattern(text, {"all": 0.01}, [(text, "deleted")]))
    ET.fromstring(drawing.inline)
