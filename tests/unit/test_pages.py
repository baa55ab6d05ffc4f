"""What every page has from `base.html.j2` and `tables.html.j2`, in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mrt5cli.report.html import Section, page
from mrt5cli.report.tables import Table

pytestmark = pytest.mark.browser


def test_a_table_sorts_by_a_click_and_by_a_key(browser: Any, tmp_path: Path) -> None:
    rows = [("b", "1,000"), ("a", "\N{EN DASH}"), ("c", "20.5"), ("d", "\N{MINUS SIGN}3")]
    file = tmp_path / "page.html"
    file.write_text(page("Sorted", "", [Section("One", tables=[Table(("name", "number"), rows)])]), "utf-8")
    shown = browser.new_page()
    shown.goto(file.as_uri())

    def names() -> list[str]:
        return shown.locator("tbody td:first-child").all_inner_texts()

    assert names() == ["b", "a", "c", "d"]
    shown.get_by_role("button", name="number").click()
    assert names() == ["d", "c", "b", "a"]
    shown.keyboard.press("Enter")
    assert names() == ["b", "c", "d", "a"]
    assert shown.get_by_role("columnheader", name="number").get_attribute("aria-sort") == "descending"
