"use strict";

// A click on a header sorts its column, a second one the other way round; keys work as clicks do.
function sortable(table) {
  const order = new Intl.Collator(undefined, { numeric: true });
  const number = text => Number.parseFloat(text.replaceAll(",", "").replace("\u2212", "-"));
  const compare = (one, other, up) => {
    const [a, b] = [number(one), number(other)];
    // What is no number, such as a dash, stays behind what is, either way.
    if (Number.isNaN(a) !== Number.isNaN(b)) return Number.isNaN(a) ? 1 : -1;
    return (up ? 1 : -1) * (Number.isNaN(a) ? order.compare(one, other) : a - b);
  };
  table.querySelectorAll("thead th").forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const up = header.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("th[aria-sort]").forEach(other => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
      const text = row => row.cells[column].textContent.trim();
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort((one, other) => compare(text(one), text(other), up)));
    });
  });
}

document.querySelectorAll("table.sortable").forEach(sortable);
