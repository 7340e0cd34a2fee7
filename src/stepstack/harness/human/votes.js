"use strict";
// The page of votes.py. A choice is kept in this browser at once and sent when a pair is complete; what the server has not
// confirmed stays here and is sent again. Text is only ever set as text.

const SIDES = ["left", "tie", "right"];
const KEYS = { ArrowLeft: "left", ArrowDown: "tie", ArrowRight: "right", 1: "left", 2: "tie", 3: "right" };
const HELP = "← left, ↓ tie, → right (or 1 2 3); Backspace takes one back; Enter saves and goes on; P goes back; R plays again; sound: A plays the left, D the right, W the voice";
const GIVEN = { image: "first frame", audio: "voice" };
const PLAYED = { a: "left", d: "right", w: "given" }; // figures of sound, by key

const main = document.getElementById("main");
let annotator = "";
let study = null; // as /pairs tells it
let at = 0; // place in study.pairs
let choices = {}; // of the pair that is shown
let notice = "";
let shown = 0; // counts loads, so that a slow one cannot show a pair that was left

function el(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// ---- what is kept in this browser: choices that the server has not confirmed

const slot = (pair) => `votes/${study.study}/${annotator}/${pair.number}`;
const draft = (pair) => JSON.parse(localStorage.getItem(slot(pair)) || "null");
const complete = (given) => Object.keys(study.questions).every((name) => SIDES.includes(given[name]));

async function send(pair, given) {
  const body = JSON.stringify({ annotator, pair: pair.number, choices: given });
  const answer = await fetch("votes", { method: "POST", headers: { "Content-Type": "application/json" }, body });
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error);
  pair.choices = given;
  if (JSON.stringify(draft(pair)) === JSON.stringify(given)) localStorage.removeItem(slot(pair));
}

/** Sends all complete votes that are only here. */
async function flush() {
  notice = "";
  try {
    for (const pair of study.pairs) {
      const given = draft(pair);
      if (given && complete(given)) await send(pair, given);
    }
  } catch (error) {
    notice = `Not saved yet (${error.message}). Your votes are kept in this browser; Enter tries again.`;
  }
}

// ---- what happens

async function begin(name) {
  const answer = await fetch(`pairs?annotator=${encodeURIComponent(name)}`);
  const said = await answer.json();
  if (!answer.ok) return ask(said.error);
  annotator = name.trim();
  localStorage.setItem("votes/annotator", annotator);
  study = said;
  await flush();
  go(open());
}

/** The next pair without a vote, from here on and round; the pair that is shown where there is none. */
function open() {
  const order = study.pairs.map((_, i) => (at + i) % study.pairs.length);
  const next = order.find((i) => !study.pairs[i].choices);
  return next === undefined ? at : next;
}

function go(place) {
  at = place;
  const pair = study.pairs[at];
  choices = { ...(draft(pair) || pair.choices) };
  render();
  load(pair);
}

function choose(name, side) {
  choices = { ...choices, [name]: side };
  localStorage.setItem(slot(study.pairs[at]), JSON.stringify(choices));
  render();
}

function takeBack() {
  const given = Object.keys(study.questions).filter((name) => choices[name]);
  if (!given.length) return;
  delete choices[given.pop()];
  localStorage.setItem(slot(study.pairs[at]), JSON.stringify(choices));
  render();
}

async function save() {
  if (!complete(choices)) return;
  await flush();
  const pair = study.pairs[at];
  if (notice || !pair.choices || draft(pair)) render();
  else if (study.pairs.every((one) => one.choices)) finish();
  else go(open());
}

async function load(pair) {
  const mine = ++shown;
  const who = encodeURIComponent(annotator);
  const clips = ["left", "right"].map((side) => [side, `clip?pair=${pair.number}&side=${side}&annotator=${who}`]);
  const urls = pair.given ? [["given", `given?pair=${pair.number}`], ...clips] : clips;
  try {
    const blobs = await Promise.all(urls.map(async ([, url]) => (await fetch(url)).blob()));
    if (mine !== shown) return;
    silence(); // what leaves the page plays on
    if (!pair.given) document.querySelector('figure[data-of="given"]').replaceChildren();
    blobs.forEach((blob, i) => put(urls[i][0], blob));
    replay();
  } catch (error) {
    if (mine !== shown) return;
    notice = `The clips cannot be loaded (${error.message}). Is the server running?`;
    render();
  }
}

function put(place, blob) {
  const figure = document.querySelector(`figure[data-of="${place}"]`);
  const old = figure.querySelector("img, video, audio");
  if (old) URL.revokeObjectURL(old.src);
  const type = blob.type.split("/")[0];
  const kind = { video: "video", audio: "audio" }[type] || "img";
  const label = place === "given" ? GIVEN[type] : place;
  const more = { video: { loop: "", muted: "", playsinline: "" }, audio: { controls: "" }, img: { alt: label } }[kind];
  const media = el(kind, { src: URL.createObjectURL(blob), ...more });
  if (kind === "video") media.muted = true; // without it a browser does not play by itself
  figure.replaceChildren(media, el("figcaption", {}, label));
}

/** Both clips from their beginning: pictures together, sounds one after the other. */
function replay() {
  if (sound("left")) return play("left", () => play("right"));
  for (const media of document.querySelectorAll("figure video")) {
    media.currentTime = 0;
    media.play();
  }
  for (const media of document.querySelectorAll("figure img")) media.src = media.src;
}

const sound = (place) => document.querySelector(`figure[data-of="${place}"] audio`);

function silence() {
  for (const media of document.querySelectorAll("figure audio")) media.pause(), (media.onended = null);
}

/** One sound from its beginning, the others silent. A browser that plays nothing before it was touched leaves it. */
function play(place, then) {
  silence();
  const media = sound(place);
  media.currentTime = 0;
  media.onended = then || null;
  media.play().catch(() => {});
}

document.addEventListener("keydown", (event) => {
  if (!study || event.ctrlKey || event.metaKey || event.altKey || !document.getElementById("questions")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const now = Object.keys(study.questions).find((name) => !choices[name]);
  if (key in KEYS && now) choose(now, KEYS[key]);
  else if (key === "Backspace") takeBack();
  else if (key === "Enter") save();
  else if (key === "p" && at > 0) go(at - 1);
  else if (key === "r") replay();
  else if (key in PLAYED && sound(PLAYED[key])) play(PLAYED[key]);
  else return;
  event.preventDefault();
});

// ---- what is seen

function ask(said) {
  const field = el("input", { id: "name", value: localStorage.getItem("votes/annotator") || "", maxlength: "40", autofocus: "" });
  const enter = (event) => (event.preventDefault(), begin(field.value));
  main.replaceChildren(
    el("h1", {}, "Which clip?"),
    el("p", {}, "Two clips of one prompt. Say of each question which is better, or that they tie."),
    el("form", { onsubmit: enter }, el("label", {}, "Your name ", field), " ", el("button", {}, "Begin")),
    el("p", { class: "bad" }, said || ""),
  );
  field.focus();
}

function render() {
  const pair = study.pairs[at];
  const done = study.pairs.filter((one) => one.choices).length;
  const now = Object.keys(study.questions).find((name) => !choices[name]);
  if (!document.getElementById("questions")) {
    main.replaceChildren(
      el("header", { id: "header" }),
      el("p", { class: "prompt", id: "prompt" }),
      el("div", { class: "clips" }, ...["given", "left", "right"].map((of) => el("figure", { "data-of": of }))),
      el("div", { id: "questions" }),
    );
  }
  document.getElementById("header").replaceChildren(
    el("span", {}, annotator), el("progress", { value: done, max: study.pairs.length }),
    el("span", { id: "done" }, `${done} of ${study.pairs.length} saved`),
  );
  document.getElementById("prompt").textContent = pair.prompt;
  const rows = Object.entries(study.questions).map(([name, text]) =>
    el("div", { class: name === now ? "question now" : "question" }, el("span", {}, text), el("span", {},
      ...SIDES.map((side) => el("button", { "aria-pressed": String(choices[name] === side), "data-of": `${name} ${side}`, onclick: () => choose(name, side) }, side)))));
  document.getElementById("questions").replaceChildren(
    ...rows,
    el("p", {},
      el("button", { id: "back", disabled: at > 0 ? null : "", onclick: () => go(at - 1) }, "back"),
      el("button", { id: "save", disabled: complete(choices) ? null : "", onclick: save }, "save, next")),
    el("p", { class: "bad", id: "notice" }, notice), el("small", {}, HELP),
  );
}

function finish() {
  silence();
  main.replaceChildren(el("h1", {}, "All saved. Thank you."), el("p", {}, el("button", { onclick: () => go(at) }, "look again")));
}

ask("");
