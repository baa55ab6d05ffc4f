"""Figures: well-formed, self-contained SVG whose marks are the numbers they were given."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrt5cli.report.figures.against_reduction import gate_placement, loss_against_reduction, macs, runtime
from mrt5cli.report.figures.deletion_patterns import Pattern, deletion_patterns
from mrt5cli.report.figures.per_language import Model, per_language
from mrt5cli.report.figures.per_sample import Scatter, per_sample
from mrt5cli.report.figures.style import LOOKS, Drawing, Point, look_of

SVG = "{http://www.w3.org/2000/svg}"
OKABE_ITO = {
    "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#000000", "#ffffff", "#8a8a8a", "none"
}  # fmt: skip
RNG = np.random.default_rng(0)

WITH_PUBLISHED = [
    Point("ByT5", 0.0, 1.0),
    Point("MrT5", 30.0, 1.1, (1.05, 1.15)),
    Point("MrT5", 50.0, 1.2, published=True),
    Point("Random", 50.0, 1.5),
    Point("something new", 40.0, 1.4),
]
LONG = "a_recipe_with_quite_a_long_name_for_a_legend"
DRAWINGS: dict[str, Callable[[], Drawing]] = {
    "loss": lambda: loss_against_reduction(WITH_PUBLISHED, unit="bits per byte", name="loss", caption="c"),
    "languages": lambda: per_language(
        [
            Model("byt5", "ByT5", {"Thai": 1.0, "English": 1.1}, {"Thai": 0.0}, {"Thai": 1.05}),
            Model(LONG, "MrT5", {"Thai": 1.2}, {"Thai": 50.0}, {"English": 1.3}, {"Thai": 51.0}),
        ],
        ["Thai", "English", "a language of which nothing is known"],
        unit="bits per byte",
        name="languages",
        caption="c",
    ),
    "many-languages": lambda: per_language(
        [Model("m", "MrT5", {f"l{n}": 1.0 for n in range(107)}, {f"l{n}": n / 2 for n in range(107)})],
        [f"l{n}" for n in range(107)],
        unit="bits per byte",
        name="many-languages",
        caption="c",
    ),
    "gates": lambda: gate_placement(
        [Point("", 1, 1.0), Point("", 3, 1.1, published=True)], [Point("", 1, 30.0)],
        unit="loss", other="less time than ByT5 (%)", name="gates", caption="c",
    ),
    "macs": lambda: macs(
        paper=[(0, 100), (100, 28)], exact=[(0, 100), (100, 29)], published=[(50, 62)],
        runs={"MrT5": [(40.0, 70.0)]}, name="macs", caption="c",
    ),
    "samples": lambda: per_sample(
        [
            Scatter("one", "MrT5", RNG.normal(50, 5, 30), RNG.normal(5, 5, 30)),
            Scatter("flat", "CP", [50.0, 50.0, 50.0], [1.0, 2.0, 3.0], varies=False),
            *(Scatter(f"r{n}", "Random", [1.0, 2.0], [1.0, n]) for n in range(7)),
        ],
        name="samples", caption="c",
    ),
    "patterns": lambda: deletion_patterns(
        [
            Pattern("gate", {"vowel": 100.0, "consonant": 0.0}, {"vowel": 99.0}, [("a", True), ("$", False)]),
            Pattern(LONG, {"vowel": 50.0}, text=[(c, c in "aeiou") for c in "some text " * 30]),
        ],
        name="patterns", caption="c",
    ),
    "patterns-without-text": lambda: deletion_patterns(
        [Pattern("gate", {"vowel": 100.0})], name="patterns-without-text", caption="c"
    ),
    "time": lambda: runtime(
        [Point("MrT5", 50.0, 30.0), Point("MrT5", 49.5, 32.3, published=True)], [(50.0, 38.0)],
        name="time", caption="c",
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=DRAWINGS)
def drawing(request: pytest.FixtureRequest) -> Drawing:
    return DRAWINGS[request.param]()


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
    assert drawing.inline.startswith('<svg role="img" aria-label="c"')
    assert drawing.svg.startswith("<?xml")


def test_text_stays_text(drawing: Drawing) -> None:
    words = " ".join(
        "".join(element.itertext()) for element in ET.fromstring(drawing.svg).iter(f"{SVG}text")
    )
    assert re.search(r"[a-z]{4}", words)


def test_the_same_numbers_are_the_same_drawing() -> None:
    assert DRAWINGS["loss"]().svg == DRAWINGS["loss"]().svg
    assert "<dc:date>" not in DRAWINGS["loss"]().svg


def test_captions_are_escaped() -> None:
    found = runtime([Point("MrT5", 1.0, 2.0)], [], name="n", caption='a < b & "c"').inline
    assert ET.fromstring(found).attrib["aria-label"] == 'a < b & "c"'


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
    points = [Point("MrT5", x, y) for x, y in ((10.0, 1.0), (20.0, 3.0), (40.0, 2.0))]
    svg = loss_against_reduction(points, unit="u", name="n", caption="c").svg
    found = [
        marks(svg, f"line2d_{number}")
        for number in range(1, 60)
        if f'id="n-line2d_{number}"' in svg and len(marks(svg, f"line2d_{number}")) == 3
    ]
    [placed] = found
    x, y = np.array(placed).T
    assert np.corrcoef(x, [10, 20, 40])[0, 1] == pytest.approx(1.0)
    assert np.corrcoef(y, [1, 3, 2])[0, 1] == pytest.approx(-1.0)  # up the page is down in SVG


@settings(max_examples=8, deadline=None)
@given(
    st.lists(
        st.builds(
            Point,
            st.sampled_from([*LOOKS, "other"]),
            st.floats(0, 100),
            st.floats(1e-5, 1e3),
            st.none(),
            st.booleans(),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_any_points_can_be_drawn(points: list[Point]) -> None:
    drawing = loss_against_reduction(points, unit="u", name="n", caption="c")
    ET.fromstring(drawing.svg)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=20))
@settings(max_examples=8, deadline=None)
def test_any_text_can_be_drawn(text: str) -> None:
    pattern = Pattern(text, {"all": 1.0}, text=[(character, True) for character in text])
    ET.fromstring(deletion_patterns([pattern], name="n", caption=text).inline)
