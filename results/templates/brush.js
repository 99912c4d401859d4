"use strict";
// Parallel coordinates: a range held on any axis keeps the trials that pass through it.
const Brush = (() => {
  const states = new WeakMap();
  const stateOf = (plot) => {
    if (!states.has(plot)) states.set(plot, {ranges: new Map(), handles: []});
    return states.get(plot);
  };
  const plain = (label) => new DOMParser()
    .parseFromString(label.replaceAll("<br>", ", "), "text/html").body.textContent;

  // A bundle holds many lines, broken by nulls: one array of places for each.
  const linesOf = (trace) => {
    const width = trace.x.indexOf(null);
    const lines = [];
    for (let at = 0; width > 0 && at < trace.x.length; at += width + 1) {
      lines.push({y: trace.y.slice(at, at + width), label: trace.text[at]});
    }
    return lines;
  };
  const passes = (line, ranges) => [...ranges].every(([axis, [low, high]]) =>
    line.y[axis] !== null && line.y[axis] >= low - 1e-9 && line.y[axis] <= high + 1e-9);
  const joined = (trace, lines, changes) => {
    const width = trace.x.indexOf(null);
    const x = trace.x.slice(0, width + 1);
    return {...trace, ...changes, x: lines.flatMap(() => x),
      y: lines.flatMap((line) => [...line.y, null]),
      text: lines.flatMap((line) => x.map(() => line.label))};
  };

  // The figure's data as the ranges leave it: what is kept in colour, the rest faint below.
  const apply = (plot, data) => {
    const {ranges} = stateOf(plot);
    if (!ranges.size) return data;
    const bundles = data.filter((trace) => trace.mode === "lines" && trace.x.length);
    const faint = {name: "not kept", showlegend: false, hoverinfo: "skip", opacity: 0.25,
      line: {color: "$muted", width: 1}};
    const rest = bundles.map((trace) =>
      joined(trace, linesOf(trace).filter((line) => !passes(line, ranges)), faint));
    const kept = data.map((trace) => bundles.includes(trace)
      ? joined(trace, linesOf(trace).filter((line) => passes(line, ranges)), {}) : trace);
    return [...rest, ...kept];
  };

  const say = (plot, data) => {
    const {ranges} = stateOf(plot);
    const told = plot.parentNode.querySelector(".brush [role=status]");
    plot.parentNode.querySelector(".brush button").disabled = !ranges.size;
    if (!ranges.size) { told.textContent = ""; return; }
    const all = data.filter((trace) => trace.mode === "lines").flatMap(linesOf);
    const kept = all.filter((line) => passes(line, ranges))
      .sort((a, b) => a.y[a.y.length - 1] - b.y[b.y.length - 1]);
    const best = kept.length ? `; the best of them: ${plain(kept[0].label)}` : "";
    told.textContent = `${kept.length} of ${all.length} trials kept${best}`;
  };

  const attach = (plot, figure, redraw) => {
    const state = stateOf(plot);
    const layout = figure.layout;
    const words = figure.data.find((trace) => trace.mode === "text") || {x: [], y: [], text: []};
    const nearest = (axis, at) => {
      let best = null;
      words.x.forEach((x, i) => {
        if (x === axis && (best === null || Math.abs(words.y[i] - at) < Math.abs(words.y[best] - at))) best = i;
      });
      return best === null ? `${Math.round(100 * at)}%` : words.text[best];
    };
    const changed = () => { redraw(); say(plot, figure.data); };
    const place = () => {
      const {xaxis, yaxis} = plot._fullLayout;
      const top = yaxis._offset + yaxis.l2p(1), bottom = yaxis._offset + yaxis.l2p(0);
      state.handles.forEach((handle, axis) => {
        handle.style.left = `${xaxis._offset + xaxis.l2p(axis) - 12}px`;
        handle.style.top = `${top}px`;
        handle.style.height = `${bottom - top}px`;
        const range = state.ranges.get(axis);
        handle.firstChild.hidden = !range;
        if (range) {
          handle.firstChild.style.top = `${100 * (1 - range[1])}%`;
          handle.firstChild.style.height = `${100 * (range[1] - range[0])}%`;
        }
        handle.setAttribute("aria-valuetext", range
          ? `${nearest(axis, range[0])} to ${nearest(axis, range[1])}` : "all kept");
        handle.setAttribute("aria-valuenow", range ? range[1] : 1);
      });
    };
    const hold = (axis, low, high) => {
      if (high - low < 0.01) state.ranges.delete(axis);
      else state.ranges.set(axis, [Math.max(0, low), Math.min(1, high)]);
      changed();
    };
    const make = (name, axis) => {
      const handle = document.createElement("div");
      handle.className = "axis";
      handle.tabIndex = 0;
      for (const [key, value] of Object.entries({role: "slider", "aria-orientation": "vertical",
        "aria-valuemin": 0, "aria-valuemax": 1, "aria-label": `Range kept of ${plain(name)}`})) {
        handle.setAttribute(key, value);
      }
      handle.append(document.createElement("div"));
      const at = (event) => {
        const box = handle.getBoundingClientRect();
        return Math.min(1, Math.max(0, (box.bottom - event.clientY) / box.height));
      };
      let from = null;
      handle.addEventListener("pointerdown", (event) => {
        from = at(event);
        handle.setPointerCapture(event.pointerId);
      });
      handle.addEventListener("pointermove", (event) => {
        if (from !== null) hold(axis, Math.min(from, at(event)), Math.max(from, at(event)));
      });
      for (const end of ["pointerup", "pointercancel"]) {
        handle.addEventListener(end, (event) => {
          if (from !== null && Math.abs(at(event) - from) < 0.01) hold(axis, 0, 0);
          from = null;
        });
      }
      handle.addEventListener("keydown", (event) => {
        const step = {ArrowUp: 0.05, ArrowDown: -0.05}[event.key];
        let [low, high] = state.ranges.get(axis) || [0, 1];
        if (event.key === "Escape") hold(axis, 0, 0);
        else if (step === undefined) return;
        else if (event.shiftKey) hold(axis, Math.min(low + step, high - 0.05), high);
        else hold(axis, low, Math.max(high + step, low + 0.05));
        event.preventDefault();
      });
      return handle;
    };
    if (!state.handles.length) {
      state.handles = layout.xaxis.ticktext.map(make);
      plot.append(...state.handles);
      plot.on("plotly_afterplot", place);
      plot.parentNode.querySelector(".brush button").addEventListener("click", () => {
        state.ranges.clear();
        changed();
      });
      say(plot, figure.data);
    }
    place();
  };
  return {apply, attach};
})();
