"use strict";
// Without this script everything is still there: it narrows the tables of linears to what is typed, sorts and copies.
document.getElementById("filter").addEventListener("input", (event) => {
  const wanted = event.target.value.trim().toLowerCase();
  for (const details of document.querySelectorAll("#layers details")) {
    let shown = 0;
    for (const row of details.querySelectorAll("tbody tr")) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
      shown += row.hidden ? 0 : 1;
    }
    details.open = wanted !== "" && shown > 0;
    details.hidden = shown === 0;
  }
});

// A heading sorts its column: numbers by the value that the cell holds, the rest by its text; again: the other way round.
function value(row, column) {
  const cell = row.cells[column], number = cell.querySelector("[data-value]");
  return number ? Number(number.dataset.value) : cell.textContent;
}
for (const head of document.querySelectorAll("table.sortable th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0], column = head.cellIndex;
    const falling = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
    const rows = [...body.rows].sort((a, b) => (falling ? -1 : 1) * compare(value(a, column), value(b, column)));
    body.append(...rows);
  });
}

// A table is copied as it is sorted, cells between tabs, so that a spreadsheet takes it; anything else as its text.
function textOf(element) {
  if (element.tagName !== "TABLE") return element.textContent;
  return [...element.rows].map((row) => [...row.cells].map((cell) => cell.textContent).join("\t")).join("\n") + "\n";
}
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // a page from a file or over http may not have the clipboard
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}
for (const button of document.querySelectorAll("button[data-copy]")) {
  button.hidden = false;
  const label = button.textContent;
  button.addEventListener("click", async () => {
    await copy(textOf(document.querySelector(button.dataset.copy)));
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = label; }, 1500);
  });
}
