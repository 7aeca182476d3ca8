"use strict";
// Adds to a page that is whole without it: budgets to try, sortable tables, series to hide, marks by arrow keys, copying.
// What was chosen is kept in the address after `#`, so that a link shows the same.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const anchor = location.hash.includes("=") ? "" : location.hash;
  const state = new URLSearchParams(anchor ? "" : location.hash.slice(1));
  // Everything in a section that shows a row, its own line in the table included.
  const shown = new Map();
  for (const element of all("[data-row]")) {
    const section = element.closest("section");
    if (!shown.has(section)) shown.set(section, new Map());
    const rows = shown.get(section);
    rows.set(element.dataset.row, [...(rows.get(element.dataset.row) ?? []), element]);
  }
  const showing = (section, row) => shown.get(section)?.get(row) ?? [];
  let isReady = false;
  const keep = () => isReady && history.replaceState(null, "", String(state) ? "#" + state : anchor || location.pathname + location.search);

  // Budgets. A row fits where its whole interval does; what was not measured does not fit.
  const answer = (figure, limit, side) => {
    if (!figure) return "not measured";
    const [value, low, high] = figure;
    const worst = side === "maximum" ? high ?? value : low ?? value;
    const best = side === "maximum" ? low ?? value : high ?? value;
    const within = (x) => (side === "maximum" ? x <= limit : x >= limit);
    return within(worst) ? "fits" : within(best) ? "too close to call" : "exceeds";
  };
  for (const form of all(".budgets")) {
    const section = form.closest("section");
    const table = section.dataset.table;
    const rows = all("tr[data-values]", section);
    const measured = new Map(rows.map((row) => [row, JSON.parse(row.dataset.values)]));
    const inputs = all("input", form);
    const stops = new Map(inputs.map((input) => [input, JSON.parse(input.dataset.stops)]));
    const key = (input) => table + "." + input.dataset.column;
    const limitOf = (input) => stops.get(input)[input.value];
    const start = (input) => Number(input.defaultValue);
    const free = (input) => (input.dataset.side === "maximum" ? stops.get(input).length - 1 : 0);
    const apply = () => {
      const asked = inputs.filter((input) => Number(input.value) !== free(input));
      for (const input of inputs) {
        const sign = input.dataset.side === "maximum" ? "at most " : "at least ";
        const text = asked.includes(input) ? sign + limitOf(input) + " " + input.dataset.unit : "no limit";
        input.labels[0].querySelector("output").textContent = text.trim();
        input.setAttribute("aria-valuetext", text.trim());
        if (Number(input.value) !== start(input)) state.set(key(input), asked.includes(input) ? limitOf(input) : "none");
        else state.delete(key(input));
      }
      let fitting = 0;
      for (const row of rows) {
        const figures = measured.get(row);
        const answers = asked.map((input) => answer(figures[input.dataset.column], limitOf(input), input.dataset.side));
        const counts = !row.classList.contains("invalid");
        const fits = counts && answers.every((text) => text === "fits");
        const why = asked.filter((_, at) => answers[at] !== "fits").map((input) => input.dataset.column + ": " + answers[asked.indexOf(input)]);
        row.dataset.fit = counts ? (fits ? "fits" : why.join("; ")) : "invalid";
        row.title = asked.length ? row.dataset.fit : "";
        fitting += fits ? 1 : 0;
        for (const other of showing(section, row.id))
          other.classList.toggle("out", asked.length > 0 && !fits);
      }
      const valid = rows.filter((row) => !row.classList.contains("invalid")).length;
      form.querySelector("[role=status]").textContent = asked.length
        ? `${fitting} of ${valid} valid rows fit. The others are faint in charts and tables.`
        : "Move a slider: rows that no longer fit become faint.";
      form.querySelector(".asked").textContent =
        form.dataset.command + asked.map((input) => ` --${input.dataset.side === "maximum" ? "max" : "min"} ${input.dataset.column}=${limitOf(input)}`).join("");
      keep();
    };
    for (const input of inputs) {
      const wanted = state.get(key(input));
      if (wanted !== null) {
        const at = wanted === "none" ? free(input) : stops.get(input).indexOf(Number(wanted));
        if (at >= 0) input.value = at;
      }
      input.addEventListener("input", apply);
    }
    form.querySelector(".reset").addEventListener("click", () => {
      for (const input of inputs) input.value = start(input);
      apply();
    });
    form.hidden = false;
    apply();
  }

  // Series. Hiding one takes its marks and rows away, in this section alone.
  for (const item of all(".legend [data-series]")) {
    const section = item.closest("section");
    const color = [...item.classList].find((name) => /^c\d+$/.test(name));
    const key = section.id + ".hide";
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Hide or show these rows";
    button.append(...item.childNodes);
    item.append(button);
    const name = item.dataset.series;
    const rows = all("tr[data-of]", section).filter((row) => row.dataset.of === name && row.id);
    const show = (isShown) => {
      button.setAttribute("aria-pressed", String(isShown));
      for (const row of rows)
        for (const other of showing(section, row.id))
          other.classList.toggle("is-hidden", !isShown);
      const hidden = state.getAll(key).filter((other) => other !== name);
      state.delete(key);
      for (const other of isShown ? hidden : [...hidden, name]) state.append(key, other);
      keep();
    };
    button.addEventListener("click", () => show(button.getAttribute("aria-pressed") !== "true"));
    button.classList.add(color);
    show(!state.getAll(key).includes(name));
  }

  // Sorting. A third click restores the order of the study.
  for (const table of all("table.sortable")) {
    const body = table.tBodies[0];
    const original = [...body.rows];
    const key = (table.closest("section")?.id ?? "") + ".sort";
    const heads = [...table.tHead.rows[0].cells];
    const sort = (at, direction) => {
      for (const head of heads) head.removeAttribute("aria-sort");
      if (direction) heads[at].setAttribute("aria-sort", direction);
      const value = (row) => {
        const cell = row.cells[at];
        return cell.classList.contains("number") ? (cell.dataset.order === undefined ? null : Number(cell.dataset.order)) : cell.textContent;
      };
      const sign = direction === "descending" ? -1 : 1;
      const ordered = !direction ? original : [...original].sort((one, other) => {
        const [a, b] = [value(one), value(other)];
        if (a === null || b === null) return (a === null) - (b === null);
        return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
      });
      body.append(...ordered);
      if (direction) state.set(key, at + "." + direction);
      else state.delete(key);
      keep();
    };
    heads.forEach((head, at) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        sort(at, !now ? "ascending" : now === "ascending" ? "descending" : "");
      });
    });
    const [at, direction] = (state.get(key) ?? "").split(".");
    if (heads[at] && (direction === "ascending" || direction === "descending")) sort(Number(at), direction);
  }

  // Marks: one stop of the Tab key a chart, arrows from mark to mark. The row of a mark is shown with it.
  for (const svg of all("svg.scatter")) {
    const at = new Map(all(".mark", svg).map((mark) => [mark, mark.getBBox().x]));
    const marks = [...at.keys()].sort((one, other) => at.get(one) - at.get(other));
    const open = () => marks.filter((mark) => !mark.classList.contains("is-hidden"));
    marks.forEach((mark, index) => mark.setAttribute("tabindex", index ? "-1" : "0"));
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const seen = open();
      if (!step || !seen.length) return;
      event.preventDefault();
      const next = seen[(seen.indexOf(document.activeElement) + step + seen.length) % seen.length];
      for (const mark of marks) mark.setAttribute("tabindex", mark === next ? "0" : "-1");
      next.focus();
    });
    for (const mark of marks)
      for (const [event, named] of [["pointerenter", true], ["pointerleave", false], ["focus", true], ["blur", false]])
        mark.addEventListener(event, () => {
          for (const other of showing(svg.closest("section"), mark.dataset.row))
            other.classList.toggle("named", named);
        });
  }

  // Copying.
  for (const area of all(".csv textarea")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy CSV";
    button.addEventListener("click", async () => {
      area.select();
      try {
        await navigator.clipboard.writeText(area.value);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Selected: press Ctrl+C";
      }
    });
    area.after(button);
  }
  isReady = true;
  keep();
  if (anchor) document.querySelector(anchor)?.scrollIntoView();
})();
