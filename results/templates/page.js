"use strict";
(() => {
  const THEMES = {
    light: {ink: "#1b2430", soft: "#556070", line: "#e3e6ea", panel: "#ffffff", muted: "#a9b1bb",
      best: "#111111", bad: "#b00020", c: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00",
        "#56B4E9", "#7A5195", "#6B6B00"]},
    dark: {ink: "#e6eaf0", soft: "#a3aebc", line: "#2b3440", panel: "#1a2029", muted: "#66717f",
      best: "#ffffff", bad: "#ff8a80", c: ["#4DA8E0", "#FF8A4C", "#2FCB9B", "#E59CC4", "#F2B632",
        "#8FD0F5", "#B493D6", "#C8C84A"]},
  };
  const root = document.documentElement;
  const wantsDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (wantsDark.matches ? "dark" : "light")) === "dark";
  let paper = false;
  const theme = () => THEMES[isDark() && !paper ? "dark" : "light"];

  // Colours are written `$name` in the figures: put the theme's in.
  const colour = (name, t) => name[1] === "c" ? t.c[+name.slice(2)] : t[name.slice(1)];
  const themed = (value, t) => {
    if (Array.isArray(value)) return value.length && typeof value[0] === "object" && value[0]
      && !Array.isArray(value[0]) ? value.map((item) => themed(item, t)) : value;
    if (value === null || typeof value !== "object") return value;
    const made = {};
    for (const [key, item] of Object.entries(value)) {
      made[key] = key === "color" && typeof item === "string" && item[0] === "$"
        ? colour(item, t) : themed(item, t);
    }
    return made;
  };

  // A phone's width: a few ticks are enough, unless each of them names something.
  const small = (layout) => {
    const {tickvals, ticktext} = layout.xaxis;
    const every = tickvals ? Math.ceil(tickvals.length / 10) : 1;
    if (!tickvals) layout.xaxis.nticks = 5;
    else if (every > 1) {
      layout.xaxis.tickvals = tickvals.filter((_, place) => place % every === 0);
      layout.xaxis.ticktext = ticktext.filter((_, place) => place % every === 0);
    }
  };
  const layoutOf = (given, t, narrow) => {
    const axis = (own) => ({exponentformat: "power", minexponent: 5, gridcolor: t.line, zeroline: false, linecolor: t.soft, automargin: true,
      ...own, title: {...(own.title || {}), standoff: 8}});
    const layout = {...given, xaxis: axis(given.xaxis), yaxis: axis(given.yaxis),
      font: {family: "system-ui, sans-serif", size: 12, color: t.ink},
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: {l: 50, r: 14, t: 26, b: 40}, hovermode: "closest", bargap: 0.25,
      modebar: {bgcolor: "rgba(0,0,0,0)", color: t.muted, activecolor: t.ink},
      hoverlabel: {bgcolor: t.panel, font: {color: t.ink}, align: "left"},
      legend: {orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0,
        font: {size: narrow ? 10 : 11}},
      dragmode: narrow ? false : "zoom"};
    if (narrow) small(layout);
    return layout;
  };

  // No button may send a chart anywhere.
  const config = {responsive: true, displaylogo: false, scrollZoom: false,
    showSendToCloud: false, plotlyServerURL: "", displayModeBar: "hover",
    modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"]};
  const drawn = new Set();
  const draw = (plot) => {
    const key = plot.id.slice(5);
    const figure = JSON.parse(document.getElementById("data-" + key).textContent);
    const t = theme();
    const brushed = figure.layout.meta === "brush";
    const data = themed(brushed ? Brush.apply(plot, figure.data) : figure.data, t);
    for (const trace of data) if (trace.mode === "text") trace.textfont = {size: 11, color: t.ink};
    drawn.add(plot);
    const narrow = !paper && plot.clientWidth < 520;
    const layout = layoutOf(figure.layout, t, narrow);
    // Long names stand one below the other there: they must not take the plot's own height.
    const names = data.filter((trace) => trace.showlegend && trace.name.length > 14).length;
    // The browser lays a sheet out after this: its width is not to be had yet, a screen's would be cut.
    if (paper) Object.assign(layout, {width: 640, autosize: false});
    if (narrow && layout.showlegend) layout.height += 18 * Math.max(0, names - 2);
    if (brushed) {
      layout.dragmode = false;
      layout.xaxis.fixedrange = layout.yaxis.fixedrange = true;
    }
    const done = Plotly.react(plot, data, layout, config);
    if (brushed) done.then(() => Brush.attach(plot, figure, () => draw(plot)));
    return done;
  };
  const plots = [...document.querySelectorAll(".plot")];
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) {
      watcher.unobserve(entry.target);
      draw(entry.target);
    }
  }, {rootMargin: "800px"});
  plots.forEach((plot) => watcher.observe(plot));
  const redraw = () => drawn.forEach(draw);
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    redraw();
  });
  wantsDark.addEventListener("change", redraw);
  addEventListener("beforeprint", () => { paper = true; plots.forEach(draw); });
  addEventListener("afterprint", () => { paper = false; redraw(); });

  // Tables: sort by a heading, filter by text.
  const keyOf = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.s === undefined ? cell.textContent : cell.dataset.s;
    const number = Number(text);
    return text === "" ? null : Number.isNaN(number) ? text : number;
  };
  const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
    : String(a).localeCompare(String(b), "en", {numeric: true});
  const sort = (table, column, down) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [keyOf(row, column), row]);
    rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null)
      : (down ? -1 : 1) * compare(a, b));
    body.append(...rows.map(([, row]) => row));
  };
  document.querySelectorAll("table thead th").forEach((head) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of head.parentNode.cells) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      sort(head.closest("table"), head.cellIndex, down);
    });
  });
  document.querySelectorAll("input[data-filter]").forEach((input) => {
    const table = document.getElementById("table-" + input.dataset.filter);
    const told = input.closest(".filter").querySelector("[role=status]");
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of table.tBodies[0].rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !wanted.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      told.textContent = wanted.length ? `${shown} of ${table.tBodies[0].rows.length} rows` : "";
    });
  });
  root.dataset.ready = "yes";
})();
