"use strict";
// Sorting, hover intervals and filters of the report; without scripts everything is still there to read.
(() => {
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);

  document.querySelectorAll("td[title]").forEach((cell) => {
    const text = cell.getAttribute("title");
    cell.removeAttribute("title");
    if (!text) return;
    cell.dataset.tip = text;
    cell.tabIndex = 0;
  });
  const show = (cell) => {
    tip.textContent = cell.dataset.tip;
    tip.hidden = false;
    const box = cell.getBoundingClientRect();
    const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(4, left) + window.scrollX}px`;
    tip.style.top = `${box.bottom + window.scrollY + 4}px`;
  };
  for (const name of ["mouseover", "focusin"]) {
    document.addEventListener(name, (event) => {
      const cell = event.target instanceof Element ? event.target.closest("td[data-tip]") : null;
      if (cell) show(cell);
      else tip.hidden = true;
    });
  }

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    const raw = cell ? (cell.dataset.value ?? cell.textContent.trim()) : "";
    const number = Number(raw);
    return raw === "" || raw === "–" ? null : Number.isNaN(number) ? raw : number;
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  };
  document.querySelectorAll("table.du").forEach((table) => {
    const headers = table.querySelectorAll("th[data-column]");
    const sort = (header) => {
      const descending = header.getAttribute("aria-sort") === "ascending"
        || (!header.hasAttribute("aria-sort") && !header.classList.contains("label"));
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const column = Number(header.dataset.column);
      const rows = [...table.querySelectorAll("tbody tr")];
      // Labels that a group shows once are needed on every row now.
      rows.forEach((row) => row.querySelectorAll("td.label").forEach((cell) => {
        if (!cell.textContent && cell.dataset.value) cell.textContent = cell.dataset.value;
      }));
      rows.sort((one, two) => {
        const [a, b] = [valueOf(one, column), valueOf(two, column)];
        if (a === null || b === null) return (a === null) - (b === null);
        return descending ? compare(b, a) : compare(a, b);
      });
      const body = table.tBodies[0];
      body.append(...rows);
      [...table.tBodies].slice(1).forEach((other) => other.remove());
    };
    headers.forEach((header) => {
      header.tabIndex = 0;
      header.addEventListener("click", () => sort(header));
      header.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(header); });
    });
  });

  document.querySelectorAll(".filters").forEach((form) => {
    const items = [...document.querySelectorAll(form.dataset.items)];
    const count = form.querySelector("output");
    const update = () => {
      let left = 0;
      items.forEach((item) => {
        const fits = [...form.querySelectorAll("select, input")].every((control) => {
          const wanted = control.value.trim().toLowerCase();
          if (!wanted) return true;
          if (control.tagName === "SELECT") return (item.dataset[control.name] ?? "").toLowerCase() === wanted;
          return item.textContent.toLowerCase().includes(wanted);
        });
        item.hidden = !fits;
        left += fits;
      });
      if (count) count.textContent = `${left} of ${items.length}`;
    };
    form.addEventListener("input", update);
    form.addEventListener("submit", (event) => event.preventDefault());
    update();
  });
})();
