for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const [first, last, series, unit] = JSON.parse(figure.dataset.chart);
  const plot = figure.querySelector(".plot"), tip = plot.querySelector(".tip"), cursor = plot.querySelector(".cursor");
  const svg = plot.querySelector("svg");
  const nearest = (points, step) => {
    let lo = 0, hi = points.length - 1;
    while (hi - lo > 1) { const mid = (lo + hi) >> 1; if (points[mid][0] <= step) lo = mid; else hi = mid; }
    return Math.abs(points[lo][0] - step) <= Math.abs(points[hi][0] - step) ? points[lo] : points[hi];
  };
  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const step = first + share * (last - first);
    tip.textContent = "";
    const head = document.createElement("b");
    tip.append(head);
    let at = null;
    for (const [name, colour, points] of series) {
      if (!points.length) continue;
      const point = nearest(points, step);
      if (at === null) at = point[0];
      const row = document.createElement("span");
      row.className = "key " + colour;
      row.textContent = name + " " + point[1] + (point[0] === at ? "" : " (" + unit + " " + point[0] + ")");
      tip.append(row);
    }
    if (at === null) return;
    head.textContent = unit + " " + at;
    const left = 100 * (at - first) / (last - first);
    cursor.style.left = left + "%";
    tip.style.left = left > 55 ? "auto" : "calc(" + left + "% + 10px)";
    tip.style.right = left > 55 ? "calc(" + (100 - left) + "% + 10px)" : "auto";
    plot.classList.add("read");
  };
  plot.addEventListener("pointermove", show);
  plot.addEventListener("pointerdown", show);
  plot.addEventListener("pointerleave", () => plot.classList.remove("read"));
}
