"use strict";
// The one thing that needs a script: narrowing the tables of linears to what is typed. Without it everything is still there.
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
