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

  // A tap shows a figure's interval, another one hides it; a mouse has shown it by then.
  let tapped = null;
  document.addEventListener("pointerup", (event) => {
    if (event.pointerType === "mouse") return;
    const cell = event.target instanceof Element ? event.target.closest("td[data-tip]") : null;
    const again = cell !== null && cell === tapped;
    tapped = again ? null : cell;
    setTimeout(() => {  // after the mouse events that the browser makes of a tap
      if (tapped) show(tapped);
      else tip.hidden = true;
    }, 60);
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

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

  // Episodes of which a panel is left by the filters, a few on a page.
  const pages = (section) => {
    const box = section?.querySelector(".examples[data-page]");
    if (!box) return () => {};
    const pager = section.querySelector(".pager");
    const [before, after] = pager.querySelectorAll("button");
    const size = Number(box.dataset.page);
    let page = 0;
    const draw = () => {
      const all = [...box.querySelectorAll(".example")];
      const left = all.filter((one) => [...one.querySelectorAll("figure:not(.shared)")].some((f) => !f.hidden));
      const last = Math.max(0, Math.ceil(left.length / size) - 1);
      page = Math.min(Math.max(page, 0), last);
      const here = new Set(left.slice(page * size, (page + 1) * size));
      all.forEach((one) => { one.hidden = !here.has(one); });
      pager.hidden = last === 0;
      before.disabled = page === 0;
      after.disabled = page === last;
      pager.querySelector("output").textContent = `page ${page + 1} of ${last + 1}`;
    };
    before.addEventListener("click", () => { page -= 1; draw(); });
    after.addEventListener("click", () => { page += 1; draw(); });
    return () => { page = 0; draw(); };
  };

  document.querySelectorAll(".filters").forEach((form) => {
    const turn = pages(form.closest("section"));
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
      turn();
    };
    form.addEventListener("input", update);
    form.addEventListener("submit", (event) => event.preventDefault());
    update();
  });
})();
