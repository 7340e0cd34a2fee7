"use strict";
// The page of viewer.py. State is in the URL's hash, so that a view can be kept and sent. Text of a model is only ever
// set as text, never as markup. PAGE questions are in the document at a time.

const PAGE = 50;
const LONG = 1600; // characters; a longer text is folded to its HEAD and TAIL
const HEAD = 900, TAIL = 400;

const { labels, tasks } = JSON.parse(document.getElementById("data").textContent);
const state = { task: 0, show: "all", of: "any", find: "", at: 0 };
let found = []; // the questions that state lets through
let pattern = null; // of state.find

// ---- verdicts: a sample without a score has none; right means a score above 0

const failed = (s) => s.score === undefined;
const right = (s) => s.score > 0;
const wrong = (s) => !failed(s) && !right(s);
const truncated = (s) => s.finish === "length";
const KINDS = { right, wrong, truncated, failed };

function mean(column) {
  const scores = column ? column.samples.filter((s) => !failed(s)).map((s) => s.score) : [];
  return scores.length ? scores.reduce((a, b) => a + b, 0) / scores.length : NaN;
}

/** By name: [what the button says, whether a question passes, what the tooltip says]. */
function filters(task) {
  const columns = (q) => q.by.filter((c, i) => c && (state.of === "any" || state.of === labels[i]));
  const some = (kind) => (q) => columns(q).some((c) => c.samples.some(kind));
  const made = { all: ["all", () => true, "every question"] };
  for (const [name, kind] of Object.entries(KINDS)) {
    made[name] = [name, some(kind), `questions with a sample that is ${name}`];
  }
  if (task.questions.some((q) => q.by.some((c) => c && c.samples.length > 1))) {
    const never = (q) => columns(q).length > 0 && !some(right)(q);
    made.never = ["never right", never, "questions without a sample that is right"];
  }
  if (labels.length === 2 && task.questions.some((q) => q.by[0] && q.by[1])) {
    const [a, b] = labels;
    const one = task.questions.every((q) => q.by.every((c) => !c || c.samples.length === 1));
    const says = (x, y) => (one ? `${x} right, ${y} wrong` : `${x} better`);
    made.first = [says(a, b), (q) => mean(q.by[0]) > mean(q.by[1]), `${a} has the higher mean score`];
    made.second = [says(b, a), (q) => mean(q.by[1]) > mean(q.by[0]), `${b} has the higher mean score`];
    const differ = (q) => made.first[1](q) || made.second[1](q);
    made.differ = ["differ", differ, "the two mean scores differ"];
  }
  return made;
}

function matches(q) {
  if (!pattern) return true;
  const texts = q.by.flatMap((c) => (c ? c.samples.flatMap((s) => [s.text, s.answer || ""]) : []));
  return [q.problem, q.gold, ...texts].some((text) => pattern.test(text));
}

// ---- elements

/** An element; children are elements or text. Attributes that begin with "on" are listeners. */
function el(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((c) => c !== null));
  return made;
}

/** Text with what was searched for marked. */
function marked(text) {
  if (!pattern) return [text];
  const pieces = text.split(new RegExp(`(${pattern.source})`, "gi"));
  return pieces.map((piece, i) => (i % 2 ? el("mark", {}, piece) : piece));
}

/** A block of text; a very long one is folded, unless what was searched for is in it. */
function block(name, text) {
  const made = el("pre", { class: name });
  if (text.length <= LONG || (pattern && pattern.test(text))) {
    made.append(...marked(text));
    return made;
  }
  const hidden = text.length - HEAD - TAIL;
  const all = () => made.replaceChildren(...marked(text));
  const label = `… ${hidden.toLocaleString("en")} characters … show all`;
  const button = el("button", { class: "more", onclick: all }, label);
  made.append(text.slice(0, HEAD), button, text.slice(-TAIL));
  return made;
}

const SOUNDS = /\.(wav|mp3|flac|ogg)$/, CLIPS = /\.(mp4|webm)$/;

/** A picture, clip or sound that a model made. */
function media(file) {
  const src = file.split("/").map(encodeURIComponent).join("/");
  if (SOUNDS.test(file)) return el("audio", { src, controls: true, title: file });
  if (CLIPS.test(file)) return el("video", { src, controls: true, loop: true, muted: true, playsinline: true, title: file });
  return el("img", { src, alt: file, title: file });
}

const verdict = (s) => (failed(s) ? "failed" : right(s) ? "right" : "wrong");
const SIGNS = { right: "✓", wrong: "✗", failed: "!" };

function sampleView(s) {
  const kind = verdict(s);
  const graded = !failed(s) && s.score !== 0 && s.score !== 1 ? ` ${+s.score.toFixed(4)}` : "";
  const facts = el("div", { class: "facts" }, el("span", { class: `badge ${kind}` }, `${SIGNS[kind]} ${kind}${graded}`));
  if (s.finish === "error") return el("div", {}, facts, el("div", { class: "failure" }, s.failure));
  if (s.answer !== undefined) facts.append(el("span", {}, "answer ", el("code", {}, ...marked(s.answer))));
  else if (!s.media) facts.append(el("span", { class: "dim" }, "no answer"));
  facts.append(el("span", { class: truncated(s) ? "cut" : "dim" }, truncated(s) ? "truncated" : `finish ${s.finish}`));
  if (!s.media) facts.append(el("span", { class: "dim" }, `${s.tokens.toLocaleString("en")} tokens`));
  for (const [name, value] of Object.entries(s.parts || {})) {
    facts.append(el("span", { class: "dim" }, `${name} ${typeof value === "number" ? +value.toFixed(4) : value}`));
  }
  const failure = s.failure === undefined ? null : el("div", { class: "failure" }, s.failure);
  const made = (s.media || []).map(media);
  const text = s.text ? block("text", s.text) : made.length ? null : el("p", { class: "dim" }, "empty response");
  return el("div", {}, facts, failure, ...made, text);
}

/** The sample to show first: what the filter or the search is after. */
function firstOf(samples) {
  const kind = KINDS[state.show];
  const wanted = [(s) => kind && kind(s), (s) => pattern && pattern.test(`${s.text}\n${s.answer || ""}`)];
  for (const test of wanted) {
    const place = samples.findIndex(test);
    if (place >= 0) return place;
  }
  return 0;
}

function columnView(label, column) {
  const made = el("section", { class: "column" });
  if (!column) {
    made.append(el("h3", {}, label), el("p", { class: "dim" }, "not asked"));
    return made;
  }
  const { samples } = column;
  const count = samples.filter(right).length;
  const tally = samples.length > 1 ? el("small", {}, `${count} of ${samples.length} right`) : null;
  const body = el("div");
  const chips = el("div", { class: "chips" });
  const choose = (place) => {
    body.replaceChildren(sampleView(samples[place]));
    [...chips.children].forEach((chip, i) => chip.setAttribute("aria-pressed", String(i === place)));
  };
  if (samples.length > 1) {
    samples.forEach((s, i) => {
      const title = `sample ${i + 1}: ${verdict(s)}${truncated(s) ? ", truncated" : ""}`;
      chips.append(el("button", { class: `chip ${verdict(s)}`, title, onclick: () => choose(i) }, `${i + 1}`));
    });
  }
  made.append(el("h3", {}, label, " ", tally || ""), ...(samples.length > 1 ? [chips] : []), body);
  choose(firstOf(samples));
  return made;
}

function promptsView(q) {
  const made = el("details", { class: "prompt" }, el("summary", {}, "prompt"));
  const fill = () => {
    if (made.children.length > 1) return;
    q.by.forEach((column, i) => {
      if (!column || column.prompt === undefined) return; // the same as the one before
      const other = q.by.some((c, j) => j !== i && c && c.prompt !== undefined);
      made.append(...(other ? [el("h3", {}, labels[i])] : []), block("text", column.prompt));
    });
  };
  made.addEventListener("toggle", fill);
  return made;
}

function card(q, place) {
  const made = el("article", { class: "card", "data-place": place, onclick: () => select(place, false) });
  made.append(
    el("header", {}, el("b", {}, `#${q.index}`), el("span", {}, "gold ", el("code", {}, ...marked(q.gold)))),
    block("problem", q.problem),
    promptsView(q),
    el("div", { class: "columns" }, ...q.by.map((column, i) => columnView(labels[i], column))),
  );
  return made;
}

// ---- the page

function bar(task, made) {
  const tabs = tasks.map((t, i) => tab(t.key, i === state.task, () => change({ task: i, show: "all", at: 0 })));
  const searched = task.questions.filter(matches);
  const buttons = Object.entries(made).map(([name, [text, test, title]]) =>
    tab(`${text} ${searched.filter(test).length}`, name === state.show, () => change({ show: name, at: 0 }), title, name),
  );
  const options = ["any", ...labels].map((l) => el("option", { value: l, selected: l === state.of }, l));
  const of = el("select", { title: "whose samples the filters look at", onchange: (e) => change({ of: e.target.value, at: 0 }) }, ...options);
  const row = el("div", { class: "tabs", id: "filters" }, ...buttons, ...(labels.length > 1 ? [el("label", {}, "of ", of)] : []));
  return [...(tasks.length > 1 ? [el("nav", { class: "tabs" }, ...tabs)] : []), row];
}

function tab(text, pressed, onclick, title = null, name = null) {
  return el("button", { "aria-pressed": String(pressed), onclick, title, "data-name": name }, text);
}

const main = document.getElementById("main");
const top_ = el("div");
const search = el("input", { type: "search", id: "search", placeholder: "search problem, response, answer   ( / )" });
const status_ = el("span", { id: "status" });
const pager = (step, text, title) => el("button", { title, onclick: () => turn(step) }, text);
const tools = el("div", { class: "tools" }, search, pager(-1, "‹", "page before"), status_, pager(1, "›", "next page"));
const test_ = el("p", { id: "paired" });
const list = el("div", { id: "cards" });
main.append(el("div", { class: "bar" }, top_, tools), test_, list);

let waiting = 0;
search.addEventListener("input", () => {
  clearTimeout(waiting); // a page of long texts is not searched at each letter
  waiting = setTimeout(() => change({ find: search.value, at: 0 }), 150);
});

function change(what) {
  Object.assign(state, what);
  render();
}

/** Everything anew from the state. */
function render() {
  const task = tasks[state.task];
  pattern = state.find ? new RegExp(state.find.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "i") : null;
  const made = filters(task);
  if (!made[state.show]) state.show = "all";
  found = task.questions.filter((q) => made[state.show][1](q) && matches(q));
  state.at = Math.max(0, Math.min(state.at, found.length - 1));
  const start = state.at - (state.at % PAGE);
  const end = Math.min(start + PAGE, found.length);
  top_.replaceChildren(...bar(task, made));
  test_.textContent = task.paired || "";
  test_.hidden = !task.paired;
  if (search.value !== state.find) search.value = state.find;
  status_.textContent = found.length ? `${start + 1} to ${end} of ${found.length}` : "no question";
  list.replaceChildren(...found.slice(start, end).map((q, i) => card(q, start + i)));
  if (found.length) select(state.at, false);
  else keep();
}

/** Make a question the current one; it may be on another page. */
function select(place, scroll) {
  if (place < 0 || place >= found.length) return;
  const turned = Math.floor(place / PAGE) !== Math.floor(state.at / PAGE);
  state.at = place;
  if (turned) render();
  for (const old of list.querySelectorAll(".current")) old.classList.remove("current");
  const now = list.children[place % PAGE];
  now.classList.add("current");
  if (scroll) now.scrollIntoView({ block: "start" });
  keep();
}

function turn(step) {
  const place = (Math.floor(state.at / PAGE) + step) * PAGE;
  select(place, true);
}

document.addEventListener("keydown", (e) => {
  const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(e.target.tagName);
  if (e.key === "Escape" && typing) e.target.blur();
  if (typing || e.ctrlKey || e.metaKey || e.altKey) return;
  if (e.key === "j") select(state.at + 1, true);
  if (e.key === "k") select(state.at - 1, true);
  if (e.key === "/") {
    e.preventDefault();
    search.focus();
  }
});

// ---- the hash

function keep() {
  const words = new URLSearchParams({ task: tasks[state.task].key });
  if (state.show !== "all") words.set("show", state.show);
  if (state.of !== "any") words.set("of", state.of);
  if (state.find) words.set("find", state.find);
  if (state.at) words.set("at", String(state.at + 1));
  history.replaceState(null, "", `#${words}`);
}

function read() {
  const words = new URLSearchParams(location.hash.slice(1));
  state.task = Math.max(0, tasks.findIndex((t) => t.key === words.get("task")));
  state.show = words.get("show") || "all";
  state.of = labels.includes(words.get("of")) ? words.get("of") : "any";
  state.find = words.get("find") || "";
  state.at = (Number.parseInt(words.get("at"), 10) || 1) - 1;
  render();
  if (state.at) select(state.at, true);
}

window.addEventListener("hashchange", read);
read();
