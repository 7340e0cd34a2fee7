// Curves of a page: hover shows values, a drag zooms all charts, a slider smooths, and the choices stand in the address.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 6; // --line-0 to --line-5 in page.css; further lines are dashed
const HEIGHT = 210, LEFT = 52, RIGHT = 10, TOP = 18, BOTTOM = 24;
const RELOAD_SECONDS = 30, SILENCE_SECONDS = 600;
const DEFAULTS = { smooth: "0", x: "step", range: "own", log: "", reload: "1", zoom: "", runs: "" };

const data = JSON.parse(document.getElementById("data").textContent);
const state = Object.assign({}, DEFAULTS, Object.fromEntries(new URLSearchParams(location.hash.slice(1))));

function element(name, attributes = {}, text = "") {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
}

function save() {
  const changed = Object.entries(state).filter(([key, value]) => value !== DEFAULTS[key]);
  history.replaceState(null, "", `#${new URLSearchParams(changed)}`);
}

// -- the axis: stages stand one after another; runs that are compared lie above each other ----------------------------

const last = (list) => (list.length ? list[list.length - 1] : 0);

function offsets(set) {
  let sum = 0;
  return set.stages.map((stage) => {
    const start = set.overlaid ? 0 : sum;
    sum += last(stage[state.x]);
    return start;
  });
}

function span(set, chart) {
  const begins = offsets(set), ends = set.stages.map((stage, i) => begins[i] + last(stage[state.x]));
  if (state.zoom) return state.zoom.split(",").map(Number);
  const one = set.stages.findIndex((stage) => stage.name === state.range);
  if (one >= 0) return [begins[one], ends[one]];
  const drawn = chart.lines.filter((line) => !hiddenRuns.has(line.label)), all = state.range === "whole" || !drawn.length;
  const shown = all ? set.stages.map((_, i) => i) : drawn.map((line) => line.stage);
  return [Math.min(...shown.map((i) => begins[i])), Math.max(...shown.map((i) => ends[i]), 1e-9)];
}

const CLOCK_UNITS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400]; // seconds

function ticks(low, high, count, units = []) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const unit = units.find((u) => u >= rough) || [1, 2, 5, 10].find((m) => m * power >= rough) * power;
  const out = [];
  for (let k = Math.ceil(low / unit - 1e-9); k * unit <= high + unit * 1e-9; k++) out.push(k * unit);
  return out;
}

function number(value) {
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-3)) return value.toExponential(1).replace("e+", "e");
  return size >= 1e4 ? `${Number((value / 1e3).toPrecision(3))}k` : String(Number(value.toPrecision(3)));
}

function clock(seconds) {
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)}:${String(s % 60).padStart(2, "0")} min`;
  return `${Math.floor(s / 3600)}:${String(Math.floor(s / 60) % 60).padStart(2, "0")} h`;
}

// -- one chart --------------------------------------------------------------------------------------------------------

function smoothed(values, weight) { // an exponential mean without the bias of its start
  let mean = 0, mass = 0;
  return values.map((value) => {
    mean = weight * mean + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return mean / mass;
  });
}

function prepare(chart, set) { // the lines that are shown, in the coordinates of the axis
  const begins = offsets(set), sums = new Map();
  return chart.lines.filter((line) => !chart.hidden.has(line.label) && !hiddenRuns.has(line.label)).map((line) => {
    const axis = set.stages[line.stage][state.x];
    let y = line.y;
    if (chart.stacked) {
      const below = sums.get(line.stage) || y.map(() => 0);
      y = y.map((value, i) => value + below[i]);
      sums.set(line.stage, y);
      return { line, x: line.at.map((row) => begins[line.stage] + axis[row]), y, raw: y, below };
    }
    const x = line.at.map((row) => begins[line.stage] + axis[row]);
    return { line, x, y: Number(state.smooth) ? smoothed(y, Number(state.smooth)) : y, raw: y };
  });
}

function draw(chart) {
  const set = data.sets[chart.set], svg = chart.svg, width = Math.max(240, chart.box.clientWidth);
  const lines = prepare(chart, set), [from, to] = span(set, chart), begins = offsets(set);
  const inside = lines.flatMap((l) => l.raw.filter((_, i) => l.x[i] >= from && l.x[i] <= to));
  const log = state.log && !chart.stacked && inside.length && inside.every((value) => value > 0);
  const f = log ? Math.log10 : (value) => value;
  let low = Math.min(...inside.map(f), chart.stacked ? 0 : Infinity), high = Math.max(...inside.map(f));
  if (!inside.length) [low, high] = [0, 1];
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) * 0.5, high + (Math.abs(high) || 1) * 0.5];
  const pad = chart.stacked ? 0 : (high - low) * 0.06;
  low -= pad; high += pad;
  const px = (x) => LEFT + ((x - from) / (to - from)) * (width - LEFT - RIGHT);
  const py = (y) => HEIGHT - BOTTOM - ((f(y) - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  Object.assign(chart, { from, to, lines_drawn: lines, width, px });
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  drawAxes(svg, set, { begins, from, to, width, low, high, log, px, py });
  const plot = element("svg", { x: LEFT, y: TOP, width: width - LEFT - RIGHT, height: HEIGHT - TOP - BOTTOM,
    viewBox: `${LEFT} ${TOP} ${width - LEFT - RIGHT} ${HEIGHT - TOP - BOTTOM}` });
  svg.append(plot);
  const path = (x, y) => x.map((value, i) => `${i ? "L" : "M"}${px(value).toFixed(1)} ${py(y[i]).toFixed(1)}`).join("");
  for (const { line, x, y, raw, below } of chart.stacked ? lines.reverse() : lines) {
    const style = chart.styles.get(line.label);
    if (chart.stacked) {
      const floor = path([...x].reverse(), [...below].reverse()).replace("M", "L");
      plot.append(element("path", { d: `${path(x, y)}${floor}Z`, class: `band ${style}` }));
      continue;
    }
    if (raw !== y) plot.append(element("path", { d: path(x, raw), class: `raw ${style}` }));
    plot.append(element("path", { d: path(x, y), class: `line ${style}` }));
    if (x.length < 30) x.forEach((value, i) => plot.append(element("circle", { cx: px(value), cy: py(y[i]), r: 2.5, class: style })));
  }
  chart.cursor = element("line", { y1: TOP, y2: HEIGHT - BOTTOM, class: "cursor", visibility: "hidden" });
  chart.brush = element("rect", { y: TOP, height: HEIGHT - TOP - BOTTOM, class: "brush", visibility: "hidden" });
  svg.append(chart.brush, chart.cursor);
}

function drawAxes(svg, set, { begins, from, to, width, low, high, log, px, py }) {
  const seen = set.overlaid ? [[-1, from, to]] : set.stages
    .map((stage, i) => [i, Math.max(from, begins[i]), Math.min(to, begins[i] + last(stage[state.x]))])
    .filter(([, a, b]) => b > a);
  let free = -Infinity; // no two ticks over each other, also where a stage is short
  for (const [i, a, b] of seen) {
    if (seen.length > 1 && i % 2 === 1) svg.append(element("rect", { x: px(a), width: px(b) - px(a), y: TOP, height: HEIGHT - TOP - BOTTOM, class: "stage" }));
    if (set.stages.length > 1 && i >= 0 && px(b) - px(a) > 7 * set.stages[i].name.length)
      svg.append(element("text", { x: px(a) + 3, y: TOP - 5, class: "stage-name" }, set.stages[i].name));
    const start = i >= 0 && state.x === "step" ? begins[i] : 0; // steps are counted anew in each stage, time goes on
    for (const tick of ticks(a - start, b - start, Math.max(1, ((px(b) - px(a)) / 70) | 0), state.x === "time" ? CLOCK_UNITS : [])) {
      const x = px(tick + start), text = state.x === "step" ? number(tick) : clock(tick);
      if (x - 3.5 * text.length < Math.max(free, LEFT - 8) || x + 3.5 * text.length > width) continue;
      free = x + 3.5 * text.length + 6;
      svg.append(element("text", { x, y: HEIGHT - 8, class: "tick middle" }, text));
    }
  }
  let marks = ticks(low, high, 5).map((value) => (log ? 10 ** value : value));
  if (log && high - low < 2) marks = ticks(10 ** low, 10 ** high, 5).filter((value) => value > 0);
  for (const value of marks) {
    svg.append(element("line", { x1: LEFT, x2: width - RIGHT, y1: py(value), y2: py(value), class: "grid" }));
    svg.append(element("text", { x: LEFT - 6, y: py(value) + 4, class: "tick end" }, number(Math.abs(value) < (high - low) * 1e-9 && !log ? 0 : value)));
  }
}

// -- pointer, legend, controls ----------------------------------------------------------------------------------------

function hover(chart, event) {
  const x = chart.from + (((event.clientX - chart.svg.getBoundingClientRect().left) - LEFT) / (chart.width - LEFT - RIGHT)) * (chart.to - chart.from);
  const set = data.sets[chart.set];
  let best = null;
  for (const one of chart.lines_drawn)
    one.x.forEach((value, i) => { if (!best || Math.abs(value - x) < Math.abs(best.x - x)) best = { x: value, row: one.line.at[i], stage: set.stages[one.line.stage] }; });
  if (!best) return;
  chart.cursor.setAttribute("x1", chart.px(best.x));
  chart.cursor.setAttribute("x2", chart.px(best.x));
  chart.cursor.setAttribute("visibility", "visible");
  chart.where.textContent = `${set.overlaid ? "" : best.stage.name} step ${best.stage.step[best.row]}, ${clock(best.stage.time[best.row])}`;
  for (const [label, node] of chart.values) node.textContent = "";
  for (const { line, x: xs, y, below } of chart.lines_drawn) {
    let near = 0;
    xs.forEach((value, i) => { if (Math.abs(value - best.x) < Math.abs(xs[near] - best.x)) near = i; });
    const close = Math.abs(xs[near] - best.x) <= (chart.to - chart.from) / 40;
    if (close) chart.values.get(line.label).textContent = ` ${Number((y[near] - (below ? below[near] : 0)).toPrecision(4))}`;
  }
  if (chart.dragged !== undefined) {
    const [a, b] = [chart.dragged, Math.min(Math.max(x, chart.from), chart.to)].sort((p, q) => p - q);
    chart.brush.setAttribute("x", chart.px(a));
    chart.brush.setAttribute("width", chart.px(b) - chart.px(a));
    chart.brush.setAttribute("visibility", "visible");
    chart.selected = [a, b];
  }
  return x;
}

function leave(chart) {
  chart.cursor.setAttribute("visibility", "hidden");
  chart.where.textContent = "";
  for (const node of chart.values.values()) node.textContent = "";
}

function setUp(chart, index) {
  chart.box = document.querySelector(`[data-chart="${index}"]`);
  chart.svg = chart.box.querySelector("svg");
  chart.where = chart.box.querySelector(".where");
  chart.hidden = new Set();
  const labels = [...new Set(chart.lines.map((line) => line.label))];
  chart.styles = new Map(labels.map((label, i) => [label, `c${i % COLOURS}${i >= COLOURS ? " dashed" : ""}`]));
  if (data.runs) chart.styles = new Map(data.runs.map((run, i) => [run, `c${i % COLOURS}${i >= COLOURS ? " dashed" : ""}`]));
  chart.values = new Map();
  for (const label of labels) {
    const button = document.createElement("button"), value = document.createElement("span");
    button.className = chart.styles.get(label);
    button.textContent = label;
    button.setAttribute("aria-pressed", "true");
    button.onclick = () => {
      chart.hidden[chart.hidden.has(label) ? "delete" : "add"](label);
      button.setAttribute("aria-pressed", String(!chart.hidden.has(label)));
      draw(chart);
    };
    button.append(value);
    chart.values.set(label, value);
    chart.box.querySelector(".legend").append(button);
    if (data.runs) button.dataset.run = label;
  }
  chart.svg.onpointermove = (event) => hover(chart, event);
  chart.svg.onpointerdown = (event) => { chart.dragged = hover(chart, event); chart.selected = null; };
  chart.svg.onpointerleave = () => { chart.dragged = undefined; leave(chart); };
  chart.svg.onpointerup = () => {
    chart.dragged = undefined;
    chart.brush.setAttribute("visibility", "hidden");
    const [a, b] = chart.selected || [0, 0];
    if (b - a > (chart.to - chart.from) / 100) set("zoom", `${a.toPrecision(6)},${b.toPrecision(6)}`);
  };
  chart.svg.ondblclick = () => set("zoom", "");
}

const visible = new Set();
const hiddenRuns = new Set();

function redraw() {
  for (const chart of visible) draw(chart);
}

function set(key, value) {
  state[key] = value;
  if (key === "x" || key === "range") state.zoom = "";
  save();
  show();
}

function show() {
  for (const control of document.querySelectorAll("[data-control]")) {
    const key = control.dataset.control;
    if (control.type === "checkbox") control.checked = Boolean(state[key]);
    else if (control.tagName === "BUTTON") control.hidden = !state.zoom;
    else control.value = state[key];
  }
  hiddenRuns.clear();
  if (data.runs) {
    const chosen = state.runs ? state.runs.split(",").map(Number) : data.chosen;
    data.runs.forEach((run, i) => { if (!chosen.includes(i)) hiddenRuns.add(run); });
    for (const box of document.querySelectorAll("[data-choose]")) box.checked = chosen.includes(Number(box.dataset.choose));
    for (const button of document.querySelectorAll("[data-run]")) button.hidden = hiddenRuns.has(button.dataset.run);
    for (const chart of data.charts) chart.box.hidden = chart.lines.every((line) => hiddenRuns.has(line.label));
  }
  redraw();
}

function start() {
  const drawn = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const chart = data.charts[Number(target.dataset.chart)];
      if (!target.clientWidth) { visible.delete(chart); continue; } // folded away
      visible.add(chart);
      draw(chart);
    }
  });
  data.charts.forEach(setUp);
  data.charts.forEach((chart) => drawn.observe(chart.box));
  for (const control of document.querySelectorAll("[data-control]")) {
    const key = control.dataset.control;
    if (control.tagName === "BUTTON") control.onclick = () => set("zoom", "");
    else control.oninput = () => set(key, control.type === "checkbox" ? (control.checked ? "1" : "") : control.value);
  }
  for (const box of document.querySelectorAll("[data-choose]")) {
    box.oninput = () => set("runs", [...document.querySelectorAll("[data-choose]")].filter((b) => b.checked).map((b) => b.dataset.choose).join(",") || "-1");
  }
  show();
}

function watch() { // a run that goes on: the page is read anew, and says when it has not been written for long
  const status = document.getElementById("status");
  if (!status || status.dataset.state !== "running") return;
  const age = (Date.now() - Date.parse(status.dataset.time)) / 1000;
  if (age > SILENCE_SECONDS)
    status.append(` Not written for ${clock(age)}: a step is long, or the process is gone; the command below asks.`);
  setInterval(() => { if (state.reload) location.reload(); }, RELOAD_SECONDS * 1000);
}

start();
watch();
