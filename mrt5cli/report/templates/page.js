"use strict";

// A click or key press on a header sorts its column; another one reverses the order.
function sortable(table) {
  const order = new Intl.Collator(undefined, { numeric: true });
  const number = text => Number.parseFloat(text.replaceAll(",", "").replace("\u2212", "-"));
  const compare = (one, other, up) => {
    const [a, b] = [number(one), number(other)];
    // Cells that are not numbers, such as a dash, come last in either order.
    if (Number.isNaN(a) !== Number.isNaN(b)) return Number.isNaN(a) ? 1 : -1;
    return (up ? 1 : -1) * (Number.isNaN(a) ? order.compare(one, other) : a - b);
  };
  table.querySelectorAll("thead th").forEach((header, column) => {
    if (!header.textContent) return;
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

// A scrolling box keeps headers at its top; the headers of a table that fits stay at the window's top.
const fitting = new ResizeObserver(entries => {
  for (const { target } of entries) {
    target.classList.remove("fits");
    target.classList.toggle("fits", target.scrollWidth <= target.clientWidth);
  }
});
document.querySelectorAll(".scroll").forEach(box => fitting.observe(box));

// The contents: a bar on a narrow page; marks the section in view.
function contents(nav) {
  const details = nav.querySelector("details");
  const wide = matchMedia("(min-width: 70rem)");
  const fold = () => {
    details.open = wide.matches;
    document.body.style.setProperty("--bar", wide.matches ? "0px" : `${nav.offsetHeight}px`);
  };
  fold();
  wide.addEventListener("change", fold);
  const links = [...nav.querySelectorAll("ol a")];
  links.forEach(link => link.addEventListener("click", () => { details.open = wide.matches; }));
  const sections = links.map(link => document.getElementById(link.hash.slice(1)));
  const mark = () => {
    const read = sections.findLastIndex(section => section.getBoundingClientRect().top < innerHeight / 3);
    if (links[read]?.ariaCurrent === "true") return;
    links.forEach((link, place) => { link.ariaCurrent = place === read; });
    if (wide.matches) links[read]?.scrollIntoView({ block: "nearest" });
  };
  addEventListener("scroll", mark, { passive: true });
  mark();
}

document.querySelectorAll("nav.contents").forEach(contents);
