{
  const data = JSON.parse(document.getElementById("data").textContent);
  const one = selector => document.querySelector(selector);
  const all = selector => [...document.querySelectorAll(selector)];
  const bytes = text => Uint8Array.from(atob(text), character => character.charCodeAt(0));
  const minus = text => String(text).replace("-", "\u2212");

  // Rounds like Python: exact halves to the even digit.
  const fixed = value => (value % 1 === 0.25 ? value - 0.05 : value).toFixed(1);
  const percent = (part, whole) => (whole ? fixed(100 * (part / whole)) : "-");
  const counted = count => count.toLocaleString("en");

  const rows = data.rows.map(row => {
    let start = 0;
    const clusters = row.sizes.split(",").map(sizes => {
      const characters = [...sizes].map(size => ({ start, stop: (start += Number(size)) }));
      return { start: characters[0].start, stop: start, characters };
    });
    return {
      ...row,
      clusters,
      ids: new Uint16Array(bytes(row.ids).buffer),
      kinds: bytes(row.kinds),
      scripts: bytes(row.scripts),
      target: row.target && bytes(row.target),
    };
  });
  const place = new Map(); // each element's model, row and cluster
  const models = data.models.map((model, number) => ({
    ...model,
    first: model.threshold,
    dial: one(`.dial[data-model="${number}"]`),
    ...Object.fromEntries(
      ["rate", "deleted", "precision", "recall", "requested"].map(name => [name, all(`[data-${name}="${number}"]`)]),
    ),
    rows: model.rows.map((row, which) => {
      const elements = all(`p[data-model="${number}"][data-row="${which}"] i`);
      elements.forEach((element, at) => place.set(element, { number, which, at }));
      const gate = row.gate && new Float32Array(bytes(row.gate).buffer);
      const gone = row.gone ? bytes(row.gone) : new Uint8Array(gate.length);
      const rate = one(`[data-rate-of="${which} ${number}"]`);
      const state = elements.map(({ classList }) => (classList.contains("d") ? 2 : Number(classList.contains("p"))));
      return { ...row, gate, gone, elements, state, rate };
    }),
    cells: ["kinds", "scripts"].map(kind =>
      data[kind].map((_, at) => {
        const cell = one(`[data-cell="${kind} ${at} ${number}"]`);
        return [cell, cell.nextElementSibling];
      }),
    ),
  }));

  // The rule of `InspectedRow.deleted_at`: a gate at the threshold is deleted, and one byte always stays.
  function recount(model, threshold) {
    model.threshold = threshold;
    const limit = Math.fround(threshold);
    const tables = [data.kinds, data.scripts].map(names => names.map(() => [0, 0]));
    let [deleted, positions, needless, judged, wanted] = [0, 0, 0, 0, 0];
    model.rows.forEach((row, which) => {
      const { kinds, scripts, target, clusters } = rows[which];
      let own = 0;
      row.gate.forEach((value, at) => (own += row.gone[at] = value <= limit ? 1 : 0));
      if (own === row.gone.length) own -= row.gone[row.spare]--;
      row.gone.forEach((gone, at) => {
        for (const count of [tables[0][kinds[at]], tables[1][scripts[at]]]) {
          count[0] += gone;
          count[1] += 1;
        }
        if (target && target[at] & 1) {
          judged += gone;
          wanted += target[at] >> 1;
          needless += gone & (target[at] >> 1);
        }
      });
      clusters.forEach(({ start, stop }, at) => {
        let gone = 0;
        for (let byte = start; byte < stop; byte++) gone += row.gone[byte];
        const state = gone === stop - start ? 2 : gone ? 1 : 0;
        if (state === row.state[at]) return;
        row.state[at] = state;
        row.elements[at].classList.toggle("d", state === 2);
        row.elements[at].classList.toggle("p", state === 1);
      });
      row.rate.textContent = percent(own, row.gone.length);
      deleted += own;
      positions += row.gone.length;
    });
    tables.forEach((table, kind) =>
      table.forEach(([gone, count], at) => {
        model.cells[kind][at][0].textContent = counted(gone);
        model.cells[kind][at][1].textContent = percent(gone, count);
      }),
    );
    const totals = {
      rate: percent(deleted, positions),
      deleted: counted(deleted),
      precision: percent(needless, judged),
      recall: percent(needless, wanted),
      requested: Number((100 * Math.max(0, 1 - threshold / model.lowest)).toPrecision(4)),  // of a quantile gate
    };
    for (const [name, text] of Object.entries(totals)) {
      model[name].forEach(element => {
        element.textContent = text;
        element.closest(".said")?.toggleAttribute("hidden", text === "-");
      });
    }
  }

  // --- thresholds ---

  const movable = models.filter(model => model.movable);
  const history = one(".history") !== null;
  const together = one("#together");
  const link = together.querySelector("input");
  together.hidden = history || movable.length < 2 || new Set(movable.map(model => model.lowest)).size > 1;
  link.checked = history || (!together.hidden && new Set(movable.map(model => model.threshold)).size === 1);

  function move(model, threshold, source) {
    if (!Number.isFinite(threshold)) return;
    const value = Math.min(0, Math.max(model.lowest, threshold));
    for (const other of link.checked ? movable : [model]) {
      for (const input of other.dial?.querySelectorAll("input") ?? []) if (input !== source) input.value = value;
      recount(other, value);
    }
    hide();
  }

  for (const model of movable) {
    recount(model, model.threshold);
    for (const input of model.dial?.querySelectorAll("input") ?? []) {
      // The slider moves in steps; the model's threshold may lie between them.
      input.addEventListener("input", () => move(model, input.valueAsNumber, input));
      input.addEventListener("change", () => (input.value = model.threshold));
    }
    model.dial?.querySelector("button").addEventListener("click", () => move(model, model.first));
  }

  // --- description of a character ---

  const tip = one("#tip");
  let [here, same] = [null, []]; // the described character, and its element in each model

  function make(name, text, parent) {
    const element = document.createElement(name);
    element.textContent = text;
    parent.append(element);
    return element;
  }

  function hide() {
    tip.hidden = true;
    here?.classList.remove("here");
    same.forEach(element => element.classList.remove("same"));
    [here, same] = [null, []];
  }

  function describe({ number, which, at }) {
    const [model, row] = [models[number], rows[which]];
    const { gate, gone } = model.rows[which];
    const cluster = row.clusters[at];
    tip.replaceChildren();
    for (const { start, stop } of cluster.characters) {
      const text = new TextDecoder().decode(Uint8Array.from(row.ids.slice(start, stop), id => id - 3));
      const line = make("p", "", tip);
      if (Object.hasOwn(data.names, text) && row.ids[start] > 2 && data.scripts[row.scripts[start]] !== "sentinels") {
        const point = text.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
        make("bdi", /[\p{C}\p{Z}]/u.test(text) ? "" : text, line);
        line.append(` U+${point} ${data.names[text] || "CONTROL CHARACTER"}, ${data.scripts[row.scripts[start]]}`);
      } else {
        line.append(data.kinds[row.kinds[start]]);
      }
    }
    const table = make("table", "", tip);
    const head = make("tr", "", make("thead", "", table));
    ["byte", gate ? "gate value" : "segment", "", "kind"].forEach(title => make("th", title, head));
    const body = make("tbody", "", table);
    for (let byte = cluster.start; byte < cluster.stop; byte++) {
      const id = row.ids[byte];
      const line = make("tr", "", body);
      make("td", id > 2 && id < 259 ? (id - 3).toString(16).padStart(2, "0") : `id ${id}`, line);
      make("td", gate ? minus(Number(gate[byte].toPrecision(6))) : gone.slice(0, byte + 1).filter(x => !x).length, line);
      make("td", gate ? (gone[byte] ? "deleted" : "kept") : gone[byte] ? "joins it" : "begins it", line);
      make("td", data.kinds[row.kinds[byte]], line);
    }
    if (models.length > 1) make("p", model.label, tip).className = "faint";
  }

  function show(element) {
    if (element === here) return;
    hide();
    here = element;
    const found = place.get(element);
    describe(found);
    element.classList.add("here");
    same = models.map(model => model.rows[found.which].elements[found.at]);
    same.forEach(element => element.classList.add("same"));
    tip.hidden = false;
    const box = element.getBoundingClientRect();
    const [width, height] = [tip.offsetWidth, tip.offsetHeight];
    const left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - width - 8));
    // Keep a heat map's column in view.
    const strip = (element.closest(".history") ?? element).getBoundingClientRect();
    const below = strip.bottom + 6 + height < window.innerHeight || strip.top < height + 6;
    tip.style.left = `${left + window.scrollX}px`;
    tip.style.top = `${(below ? strip.bottom + 6 : strip.top - height - 6) + window.scrollY}px`;
  }

  const character = event => (event.target.closest?.("i") && place.has(event.target.closest("i")) ? event.target.closest("i") : null);
  document.addEventListener("pointerover", event => {
    const element = character(event);
    if (element) show(element);
    else if (here && here !== document.activeElement && !event.target.closest?.("#tip")) hide();
  });
  document.addEventListener("click", event => {
    const element = character(event);
    if (element) show(element);
  });
  document.addEventListener("focusin", event => {
    const element = character(event);
    if (element) show(element);
    else hide();
  });
  document.addEventListener("keydown", event => {
    if (event.key === "Escape") return hide();
    const text = event.target.closest?.("p.text");
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
    if (!text || step === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const elements = [...text.querySelectorAll("i")];
    const at = elements.indexOf(event.target.closest("i"));
    const next = elements[Math.max(0, Math.min(elements.length - 1, at + step))];
    next.tabIndex = -1;
    next.focus();
  });
}
