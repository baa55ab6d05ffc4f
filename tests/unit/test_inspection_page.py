"""The page of `inspect-deletions --html`, in a real browser: it counts what the command counts, whatever the
threshold, shows any text as it is, and can be read by all."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from variants import shared

from mrt5cli.analysis.deletions import inspect_text
from mrt5cli.analysis.inspection import Inspection
from mrt5cli.report.inspection_page import inspection_page
from mrt5cli.text import percent

pytestmark = pytest.mark.browser
ARABIC, HINDI = "السلام عليكم", "क्षत्रिय"
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
LINES = ["The “naïve” fox.", "Что останется?", ARABIC, "עברית: מה", f"{HINDI} और", "น้ำท่วม", "Điều gì e\u0301"]
SCRIPTS = "\n".join([*LINES, f"中文かな {FAMILY}\tEnd\r\n"])
ATTACK = (
    '</script><img src=x onerror="hacked=1"><b>&amp; \x1b[31m \0 \u202e'.encode()
    + b"\xff \xed\xa0\x80 {{ 7*7 }}"
)


@pytest.fixture(scope="module")
def gate() -> Any:
    """A model whose gate values lie all over the place."""
    import torch

    from mrt5cli.models import MrT5Config, MrT5ForConditionalGeneration

    torch.manual_seed(3)
    shape = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 1}
    model = MrT5ForConditionalGeneration(MrT5Config(**shape, delete_gate_layer=1))
    torch.nn.init.normal_(model.encoder.block[1].delete_gate.feed_forward.weight, std=0.5)
    return model.eval()


def inspected(
    model: Any, text: bytes, threshold: float = -15.0, name: str = "one", length: int = 64
) -> Inspection:
    kind = model.config.deletion_type
    learned = kind == "scaled_sigmoid"
    rows = inspect_text(model, text, length, threshold=threshold if learned else None)
    return Inspection(
        name, kind, threshold, rows, lowest=-30.0, fixed=None if learned else "deletes at random"
    )


class Opened:
    """A page that is open, and what it did that it should not."""

    def __init__(self, browser: Any, folder: Path, html: str, **settings: Any) -> None:
        file = folder / "page.html"
        file.write_text(html, "utf-8", "backslashreplace")
        self.page = browser.new_page(**settings)
        self.faults: list[str] = []
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on(
            "request", lambda asked: self.faults.append(asked.url) if asked.url != file.as_uri() else None
        )
        self.page.goto(file.as_uri())

    def texts(self, selector: str) -> list[str]:
        return [text.strip() for text in self.page.locator(selector).all_text_contents()]

    def counts(self, model: int = 0) -> dict[str, Any]:
        """What the page says of a model now."""
        tables = {}
        for kind, table in zip(("kinds", "scripts"), self.page.locator("#tables table").all(), strict=True):
            names = table.locator("tbody td:first-child").all_inner_texts()
            cells = table.locator(f'[data-cell^="{kind} "][data-cell$=" {model}"]').all_text_contents()
            tables[kind] = dict(zip(names, (int(cell.replace(",", "")) for cell in cells), strict=True))
        return tables | {
            "deleted": sorted({*self.texts(f'[data-deleted="{model}"]')}),
            "rate": sorted({*self.texts(f'[data-rate="{model}"]')}),
            "rows": self.texts(f'[data-rate-of$=" {model}"]'),
            "struck": self.page.locator(f'p[data-model="{model}"] i.d').count(),
            "partly": self.page.locator(f'p[data-model="{model}"] i.p').count(),
        }


def expected(found: Inspection) -> dict[str, Any]:
    """What the command says."""
    document = found.document()
    return {
        "kinds": {line["kind"]: line["deleted"] for line in document["kinds"]},
        "scripts": {line["script"]: line["deleted"] for line in document["scripts"]},
        "deleted": [f"{document['deleted']:,}"],
        "rate": [percent(document["deletion_rate"], 1)],
        "rows": [percent(row["deletion_rate"], 1) for row in document["rows"]],
        **marked(found),
    }


def marked(found: Inspection) -> dict[str, int]:
    from mrt5cli.data.characters import clusters

    flags = [
        row.deleted[cluster[0].start : cluster[-1].start + len(cluster[-1].ids)]
        for row in found.rows
        for cluster in clusters(row.characters)
    ]
    struck = sum(bool(own.all()) for own in flags)
    return {"struck": struck, "partly": sum(bool(own.any()) for own in flags) - struck}


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Open a page; at the end none may have said anything on the console or asked for anything."""
    pages: list[Opened] = []

    def open_page(found: Sequence[Inspection], history_of: str | None = None, **settings: Any) -> Opened:
        html = inspection_page(found, [one.name for one in found], history_of=history_of)
        pages.append(Opened(browser, tmp_path, html, **settings))
        return pages[-1]

    yield open_page
    assert [fault for one in pages for fault in one.faults] == []
    for one in pages:
        one.page.close()


def set_threshold(page: Any, value: float, model: int = 0) -> None:
    page.locator(f'.dial[data-model="{model}"] input[type="number"]').fill(repr(value))


def test_counts_are_the_commands_at_every_threshold(opened: Any, gate: Any) -> None:
    text = (SCRIPTS * 2).encode() + ATTACK
    found = inspected(gate, text)
    shown = opened([found])
    assert shown.counts() == expected(found)
    values = np.sort(np.concatenate([row.gate for row in found.rows]))
    ties = [float(values[place]) for place in (0, 40, len(values) // 2, -2, -1)]
    # In float64 these are beside a gate value, in the float32 that the model computes in they are it.
    beside = [float(np.nextafter(ties[2], -99)), float(np.nextafter(ties[3], 0))]
    for threshold in [-29.9, -12.3456789, -0.7, *ties, *beside, -1e-9, -15.0]:
        set_threshold(shown.page, threshold)
        assert shown.counts() == expected(inspected(gate, text, threshold)), threshold
    assert len({str(expected(inspected(gate, text, tie))) for tie in ties}) > 3


@pytest.mark.parametrize("fallback", ["best", "first"])
def test_a_row_that_would_lose_everything_keeps_what_the_model_keeps(
    fallback: str, opened: Any, gate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate.config, "row_without_survivors", fallback)
    monkeypatch.setattr(gate.encoder.block[1].delete_gate, "fallback", fallback)
    shown = opened([inspected(gate, b"abcdefghijklmnop", length=8)])
    set_threshold(shown.page, -1e-9)
    assert shown.counts() == expected(inspected(gate, b"abcdefghijklmnop", -1e-9, length=8))
    assert shown.page.locator("p.text i:not(.d)").count() == 3


def test_the_slider_moves_by_key_and_by_mouse_and_back(opened: Any, gate: Any) -> None:
    text = SCRIPTS.encode()
    shown = opened([inspected(gate, text)])
    slider = shown.page.get_by_label("gate threshold")
    number = shown.page.get_by_label("threshold", exact=True)
    slider.focus()
    for key in ("PageDown", "ArrowLeft", "ArrowLeft"):
        shown.page.keyboard.press(key)
    by_key = float(number.input_value())
    assert by_key < -15
    assert shown.counts() == expected(inspected(gate, text, by_key))
    box = slider.bounding_box()
    shown.page.mouse.click(box["x"] + 0.8 * box["width"], box["y"] + box["height"] / 2)
    by_mouse = float(number.input_value())
    assert -9 < by_mouse < -3
    assert shown.counts() == expected(inspected(gate, text, by_mouse))
    shown.page.get_by_role("button", name="back to \u221215").click()
    assert (slider.input_value(), number.input_value()) == ("-15", "-15")
    assert shown.counts() == expected(inspected(gate, text))


def test_the_rate_that_a_threshold_requests_moves_with_it(opened: Any, gate: Any) -> None:
    found = replace(inspected(gate, b"abc def"), requested=0.5)
    page = opened([found, inspected(gate, b"abc def", name="other")])
    assert page.texts("[data-requested]") == ["50"]
    for threshold, rate in ((-21.0, "30"), (-29.0, "3.333"), (0.0, "100")):
        set_threshold(page.page, threshold)
        assert page.texts("[data-requested]") == [rate]


def test_a_threshold_that_is_none_is_not_taken(opened: Any, gate: Any) -> None:
    found = inspected(gate, b"what can go?")
    shown = opened([found])
    number = shown.page.get_by_label("threshold", exact=True)
    number.fill("")
    assert shown.counts() == expected(found)
    number.blur()
    assert number.input_value() == "-15"
    number.fill("-99")
    number.blur()
    assert number.input_value() == "-30"


def test_a_threshold_between_the_steps_of_the_slider_stays_itself(opened: Any, gate: Any) -> None:
    exact = float(np.sort(inspected(gate, SCRIPTS.encode()).rows[0].gate)[7])
    found = inspected(gate, SCRIPTS.encode(), exact)
    shown = opened([found])
    set_threshold(shown.page, -3.0)
    shown.page.get_by_role("button", name="back to").click()
    assert shown.counts() == expected(found)


def test_models_stand_side_by_side_and_move_together_or_alone(opened: Any, gate: Any) -> None:
    text = SCRIPTS.encode()
    found = [
        inspected(gate, text),
        inspected(gate, text, name="two"),
        inspected(shared("bp_gumbel"), text, name="bp"),
    ]
    shown = opened(found)
    assert shown.page.locator(".dial").count() == 3
    assert shown.page.locator('p[data-model="2"] i.s').count() > 3
    set_threshold(shown.page, -4.0)
    assert [shown.counts(model) for model in (0, 1)] == [expected(inspected(gate, text, -4.0))] * 2
    shown.page.get_by_label("move all thresholds together").uncheck()
    set_threshold(shown.page, -20.0, model=1)
    assert [shown.counts(model) for model in (0, 1)] == [
        expected(inspected(gate, text, at)) for at in (-4.0, -20.0)
    ]
    top = [shown.page.locator(f'p[data-model="{model}"]').first.bounding_box() for model in range(3)]
    assert top[0]["y"] == top[1]["y"]
    shown.page.set_viewport_size({"width": 500, "height": 800})
    top = [shown.page.locator(f'p[data-model="{model}"]').first.bounding_box() for model in range(3)]
    assert top[0]["x"] == top[1]["x"] and top[0]["y"] < top[1]["y"]


def test_a_heat_map_is_a_line_a_checkpoint_under_one_threshold(opened: Any, gate: Any) -> None:
    text = b"What is left of this text, which is longer than a strip?"
    steps = [inspected(gate, text, name=f"step {step}") for step in (100, 200, 300)]
    shown = opened(steps, history_of="run")
    assert shown.page.locator(".dial").count() == 1
    assert shown.page.locator(".history").count() == 2
    set_threshold(shown.page, -5.0)
    for step in range(3):
        assert shown.counts(step) == expected(inspected(gate, text, -5.0))
    lefts = [shown.page.locator(f'p[data-model="{step}"] i').nth(9).bounding_box()["x"] for step in range(3)]
    assert len(set(lefts)) == 1, "columns are characters"


def test_precision_and_recall_move_too(opened: Any, gate: Any) -> None:
    def knowing(threshold: float) -> Inspection:
        found = inspected(gate, b"#what can go?", threshold)
        return replace(found, rows=[replace(row, deletable=row.ids % 2 == 0) for row in found.rows])

    shown = opened([knowing(-15.0)])
    told = []
    for threshold in (-15.0, -25.0, -4.0):
        set_threshold(shown.page, threshold)
        told.append([percent(share, 1) for share in knowing(threshold).agreement or ()])
        assert [shown.texts("[data-precision]"), shown.texts("[data-recall]")] == [[one] for one in told[-1]]
    assert len({*map(tuple, told)}) == 3

    sentences = shown.page.locator(".dial p")
    set_threshold(shown.page, -30.0)
    assert sentences.inner_text() == "No letter is deleted. Of the letters not needed, 0.0 % are deleted."
    set_threshold(shown.page, -4.0)
    assert sentences.inner_text().startswith("Of the letters deleted, ")


def test_the_legend_names_the_least_value_of_each_model(opened: Any, gate: Any) -> None:
    found = inspected(gate, b"abc")
    assert "from 0 (keep) to \N{MINUS SIGN}30 (delete)" in opened([found]).texts("#legend")[0]
    both = opened([found, replace(found, name="two", lowest=-40.0)])
    assert "to \N{MINUS SIGN}40 or \N{MINUS SIGN}30 (delete, each model's lowest)" in both.texts("#legend")[0]


def test_a_gate_without_a_least_value_has_a_slider_over_those_there_are(opened: Any, gate: Any) -> None:
    found = replace(inspected(gate, b"what can go?"), lowest=float("-inf"))
    shown = opened([found])
    slider = shown.page.get_by_label("gate threshold")
    assert -30 <= float(slider.get_attribute("min")) <= min(found.rows[0].gate)
    set_threshold(shown.page, -10.0)
    assert shown.counts() == expected(inspected(gate, b"what can go?", -10.0))


def test_what_no_threshold_moves_has_no_slider(opened: Any) -> None:
    shown = opened([inspected(shared("random"), b"at random, by chance")])
    assert shown.page.locator("input[type=range]").count() == 0
    assert "The model deletes at random. It has no threshold to move." in shown.texts(".dial")[0]


def test_any_text_and_any_name_is_shown_and_does_nothing(opened: Any, gate: Any) -> None:
    shown = opened(
        [inspected(gate, ATTACK, name='</script><img src=x onerror="hacked=1"> \x1b[31m \udcff \u202e')]
    )
    assert shown.page.evaluate("typeof hacked") == "undefined"
    assert shown.page.locator("main img, p.text b").count() == 0
    assert '</script><img src=x onerror="hacked=1">' in shown.texts("h1")[0]
    text = shown.texts("p.text")[0]
    assert '</script><img src=x onerror="hacked=1"><b>&amp; U+001B[31m U+0000 U+202E' in text
    assert "{{ 7*7 }}" in shown.texts("p.text")[-1] or "{{ 7*7 }}" in "".join(shown.texts("p.text"))
    for name in ("U+001B", "U+0000", "U+202E", "ff", "ed", "a0", "80", "EOS"):
        assert shown.page.locator("i.c", has_text=name).count() >= 1
    set_threshold(shown.page, -3.0)


def test_scripts_join_and_marks_stay_on_their_letters(opened: Any, gate: Any) -> None:
    shown = opened([inspected(gate, f"{ARABIC}\n{HINDI}\nน้ำ".encode(), length=200)])
    widths = """(text) => {
      const paragraph = document.querySelector("p.text");
      const elements = [...paragraph.querySelectorAll("i")];
      const all = elements.map(one => one.textContent).join("");
      let at = all.indexOf(text), own = 0;
      for (const one of elements) {
        if (at <= 0 && at > -text.length) own += one.getBoundingClientRect().width;
        at -= one.textContent.length;
      }
      const plain = document.createElement("span");
      plain.textContent = text;
      paragraph.append(plain);
      const whole = plain.getBoundingClientRect().width;
      plain.remove();
      return [own, whole];
    }"""
    for word in (ARABIC.split()[0], HINDI, "น้ำ"):
        own, whole = shown.page.evaluate(widths, word)
        assert own == pytest.approx(whole, abs=0.5), word
    boxes = [shown.page.locator("p.text i").nth(place).bounding_box()["x"] for place in (0, 5)]
    assert boxes[0] > boxes[1], "Arabic runs to the left"
    # शत्रिय: four clusters, the first of which is three characters.
    assert shown.page.locator("i", has_text="क्ष").first.text_content() == "क्ष"


def test_what_a_character_is_shows_by_pointer_by_tap_and_by_key(opened: Any, gate: Any) -> None:
    found = inspected(gate, "aж e\u0301".encode())
    shown = opened([found])
    tip = shown.page.locator("#tip")
    assert not tip.is_visible()
    letter = shown.page.locator("p.text i").nth(1)
    letter.hover()
    told = tip.inner_text()
    assert "U+0436 CYRILLIC SMALL LETTER ZHE, Cyrillic" in told
    values = [f"{value:.6g}".replace("-", "\u2212") for value in found.rows[0].gate[1:3].astype(float)]
    for byte, value, fate in zip(("d0", "b6"), values, found.rows[0].deleted[1:3], strict=True):
        assert f"{byte}\t{value}\t{'deleted' if fate else 'kept'}" in told
    shown.page.keyboard.press("Escape")
    assert not tip.is_visible()
    shown.page.locator("p.text i").nth(3).click()
    assert "U+0065 LATIN SMALL LETTER E" in tip.inner_text()
    assert "U+0301 COMBINING ACUTE ACCENT" in tip.inner_text()
    shown.page.locator("p.text").focus()
    shown.page.keyboard.press("ArrowRight")
    assert "U+0061" in tip.inner_text()
    shown.page.keyboard.press("End")
    assert tip.inner_text().startswith("EOS")
    shown.page.keyboard.press("ArrowLeft")
    assert "U+0301" in tip.inner_text()


def contrast(page: Any, selector: str) -> float:
    """WCAG's contrast of an element's text with what is behind it."""
    return page.evaluate(
        """(selector) => {
          const parse = text => (text.match(/[\\d.]+/g) ?? []).map(Number);
          const element = document.querySelector(selector);
          const layers = [];
          for (let one = element; one; one = one.parentElement)
            layers.push(parse(getComputedStyle(one).backgroundColor));
          let behind = [255, 255, 255];
          for (const [r, g, b, a = 1] of layers.reverse())
            behind = [r, g, b].map((c, at) => a * c + (1 - a) * behind[at]);
          const linear = c => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
          const light = ([r, g, b]) =>
            0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
          const [one, other] = [light(parse(getComputedStyle(element).color)), light(behind)];
          return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        }""",
        selector,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_looks_like_something_in_light_and_dark(scheme: str, opened: Any, gate: Any) -> None:
    from PIL import Image

    shown = opened([inspected(gate, SCRIPTS.encode())], color_scheme=scheme)
    shown.page.evaluate("document.querySelector('section p.text i.d').style.setProperty('--g', 100)")
    assert contrast(shown.page, "section p.text i.d") > 4.5
    assert contrast(shown.page, ".dial h2") > 4.5
    picture = Image.open(io.BytesIO(shown.page.locator("p.text").first.screenshot())).convert("RGB")
    colours = sorted(picture.getcolors(10**6), reverse=True)
    assert len(colours) > 50
    assert (sum(colours[0][1]) < 200) == (scheme == "dark")


def test_paper_shows_the_marks_without_colours(opened: Any, gate: Any) -> None:
    shown = opened([inspected(gate, SCRIPTS.encode())])
    shown.page.emulate_media(media="print")
    style = (
        "document.querySelector('{}') && getComputedStyle(document.querySelector('{}')).textDecorationLine"
    )
    assert shown.page.evaluate(style.format("i.d", "i.d")) == "line-through"
    assert shown.page.evaluate(style.format("i.p", "i.p")) == "underline"
    assert not shown.page.locator(".move").is_visible()
    assert shown.page.get_by_label("threshold", exact=True).is_visible()
    assert len(shown.page.pdf()) > 10_000
    sheet = {"width": 718, "height": 1047}  # of A4 inside Chromium's margins
    heat_map = opened([inspected(gate, b"a" * 50, name="step 30,000")], history_of="run", viewport=sheet)
    heat_map.page.emulate_media(media="print")
    assert heat_map.page.evaluate("""[...document.querySelectorAll(".history")].every(
        one => one.scrollWidth <= one.clientWidth)""")


def test_it_fits_a_narrow_screen(opened: Any, gate: Any) -> None:
    narrow = {"viewport": {"width": 380, "height": 700}}
    text = (SCRIPTS + "a" * 200).encode()
    found = [
        inspected(gate, text, name="a-long-name-of-a-run-" * 4),
        inspected(shared("bp_gumbel"), text, name="bp"),
    ]
    steps = [inspected(gate, text, name=f"step {step:,}") for step in (100, 2000, 30000)]
    for shown in (opened(found, **narrow), opened(steps, history_of="run", **narrow)):
        assert shown.page.evaluate("document.documentElement.scrollWidth") == 380
        for place in (6, 30):
            letter = shown.page.locator("p.text i").nth(place)
            letter.click()
            for box in (letter.bounding_box(), shown.page.locator("#tip").bounding_box()):
                assert box["x"] >= 0 and box["x"] + box["width"] <= 380


def test_without_a_script_it_shows_what_the_model_deletes(browser: Any, tmp_path: Path, gate: Any) -> None:
    found = inspected(gate, SCRIPTS.encode())
    page = Opened(browser, tmp_path, inspection_page([found], ["one"]), java_script_enabled=False)
    assert page.counts() == expected(found)
