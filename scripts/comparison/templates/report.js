"use strict";
// A click on a column's head sorts by it, a second click the other way round. Numbers are compared
// as numbers; cells without a number stay at the end.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sort(table.tBodies[0], column, head.classList.contains("number"), descending ? -1 : 1);
    });
  });
}

function sort(body, column, numeric, direction) {
  const key = (row) => {
    const cell = row.cells[column];
    const number = parse(cell.dataset.key);
    return numeric || !Number.isNaN(number) ? number : cell.textContent.trim();
  };
  const compare = (a, b) => {
    if (typeof a === "string" || typeof b === "string") {
      return direction * String(a).localeCompare(String(b), undefined, { numeric: true });
    }
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return direction * (a < b ? -1 : Number(a > b));
  };
  const rows = [...body.rows].map((row) => [key(row), row]);
  rows.sort(([a], [b]) => compare(a, b));
  body.append(...rows.map(([, row]) => row));
}

function parse(text) {
  if (text === "inf") return Infinity;
  if (text === "-inf") return -Infinity;
  return text === undefined ? NaN : Number(text);
}
