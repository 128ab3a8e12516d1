// Shows one task after the other and sends the votes. Only fields named `html` are inserted as HTML: the server has
// sanitised them. Any other text is inserted as text, isolated so that it does not change the direction of its
// surroundings.
// A vote carries a request id, so that sending it again after a lost connection changes nothing.
"use strict";

const $ = (id) => document.getElementById(id);
const KEPT = "ft-label-token", DRAFT = "ft-label-draft";
const THINK = 350; // milliseconds during which a new task ignores keys: they were meant for the previous one

let token = null; // stored for this tab only: another tab may belong to another person
let me = null;
let task = null;
let draft = null; // the vote in preparation: {task, flagged, note, edited, strength, ratings, spent}
let busy = false, shownAt = 0, since = 0, alive = null, again = null, watching = null;

// ---- requests to the server

class Refused extends Error {
  constructor(status, what, again, code) { super(what); this.status = status; this.again = again; this.code = code; }
}

async function ask(path, body = {}, keepalive = false) {
  let reply;
  try {
    reply = await fetch("api/" + path, {
      method: "POST", keepalive, cache: "no-store", credentials: "omit",
      headers: { "Content-Type": "application/json", Authorization: "Bearer " + token },
      body: JSON.stringify(body),
    });
  } catch {
    throw new Refused(0, "The server cannot be reached.", true);
  }
  const said = await reply.json().catch(() => ({}));
  if (!reply.ok) throw new Refused(reply.status, said.error || "The server answers " + reply.status + ".", said.again || false, said.code);
  return said;
}

// Repeats a request until it succeeds: a lost connection or a full disk may be temporary. The vote is kept meanwhile.
async function insist(path, body) {
  for (let wait = 1; ; wait = Math.min(wait * 2, 15)) {
    try {
      const said = await ask(path, body);
      trouble(null);
      return said;
    } catch (e) {
      if (!e.again) throw e;
      trouble(sentence(e.message) + " Nothing is lost: trying again in " + wait + " s.", true);
      await new Promise((go) => { again = go; setTimeout(go, wait * 1000); });
    }
  }
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

function trouble(text, mayTryAgain = false) {
  $("trouble").hidden = !text;
  $("trouble-text").replaceChildren(words(text || ""));
  $("trouble-again").hidden = !mayTryAgain;
}

const tell = (text) => { $("news").textContent = text; };

// ---- text

// Invisible characters: controls of text direction and of terminals. In Markdown, the server marks them.
const HIDDEN = /([\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069])/u;

// Returns an element with a text of people or models. Its direction comes from its own letters; invisible characters
// are shown as their code points.
function words(text) {
  const all = document.createElement("bdi");
  String(text).split(HIDDEN).forEach((part, i) => {
    if (i % 2 === 0) return all.append(part);
    const code = "U+" + part.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    const mark = element("bdi", code, "hidden-character");
    mark.title = code + ": a character that nobody sees";
    all.append(mark);
  });
  return all;
}

// Lets the keyboard scroll elements that are wider than their place.
function reachable() {
  for (const box of document.querySelectorAll(".text pre, .text div:has(> table), .text bdi:has(> math)")) {
    const wide = box.scrollWidth > box.clientWidth && getComputedStyle(box).display !== "inline";
    if (wide === box.hasAttribute("tabindex")) continue;
    const name = box.matches("pre") ? "Code" : box.matches("div") ? "Table" : "Formula";
    for (const [key, value] of [["tabindex", "0"], ["role", "group"], ["aria-label", name]]) {
      if (wide) box.setAttribute(key, value); else box.removeAttribute(key);
    }
  }
}
addEventListener("resize", reachable);

// ---- screens

function show(name) {
  for (const id of ["sign-in", "rest", "task", "overview"]) $(id).hidden = id !== name;
  $("standing").hidden = name === "sign-in" || name === "overview";
  $("clock").hidden = name !== "task";
  $("tools").hidden = name === "sign-in";
  $("open-overview").setAttribute("aria-pressed", String(name === "overview"));
  $("open-overview").textContent = name === "overview" ? "Back to the task" : "Overview";
  clearInterval(watching);
  reachable();
}

function signIn(why) {
  token = null;
  sessionStorage.removeItem(KEPT);
  trouble(why);
  show("sign-in");
  $("token").focus();
}

async function start() {
  const link = new URLSearchParams(location.hash.slice(1)).get("token");
  if (link) {
    sessionStorage.setItem(KEPT, link);
    history.replaceState(null, "", location.pathname);
  }
  token = sessionStorage.getItem(KEPT);
  if (!token) return signIn(null);
  await guarded(async () => {
    me = await insist("hello");
    document.title = me.title;
    $("title").replaceChildren(words(me.title));
    $("open-overview").hidden = !me.admin;
    $("open-guidelines").hidden = !me.guidelines;
    $("guidelines-text").innerHTML = me.guidelines;
    $("open-edit").hidden = $("help-edit").hidden = !me.edit;
    $("strength").hidden = $("help-strength").hidden = !me.strength;
    $("leave").title = "You are " + me.name;
    clearInterval(alive);
    alive = setInterval(() => { if (task && !document.hidden) ask("keep").catch(() => {}); }, me.keep * 1000);
    turn(await insist("next"));
  });
}

// Runs a function that sends requests, one function at a time.
async function guarded(work) {
  if (busy) return;
  busy = true;
  document.body.setAttribute("aria-busy", "true");
  for (const b of document.querySelectorAll(".choice, #skip, #undo, #rest-undo")) b.disabled = true;
  try {
    await work();
  } catch (e) {
    if (e.status === 401) signIn(sentence(e.message));
    else if (e.status === 409) {
      trouble(null);
      tell(sentence(e.message));
      if (e.code === "nothing_to_undo") trouble("There is nothing to undo.");
      else { turn(await insist("next").catch(() => ({ progress: null }))); trouble(sentence(e.message)); }
    } else trouble(sentence(e.message || String(e)));
  } finally {
    busy = false;
    document.body.removeAttribute("aria-busy");
    for (const b of document.querySelectorAll(".choice, #skip, #undo, #rest-undo")) b.disabled = false;
  }
}

// ---- a task

function turn(said, news) {
  if (said.progress) {
    const { mine, given, wanted } = said.progress;
    $("bar").max = Math.max(wanted, 1);
    $("bar").value = given;
    $("progress-text").textContent = `${given} of ${wanted} judged · ${mine} by you`;
  }
  task = said.task;
  if (!task) return rest(said);
  const kept = JSON.parse(sessionStorage.getItem(DRAFT) || "null");
  const before = task.before || {};
  draft = kept && kept.task === task.id && kept.who === me.name ? kept : {
    task: task.id, who: me.name, flagged: before.flagged || false, note: before.note || "", edited: before.edited || "",
    strength: before.strength || null, ratings: before.ratings || {}, spent: 0,
  };
  $("prompt").replaceChildren(...spoken(task.prompt));
  $("left-text").innerHTML = task.left.html;
  $("right-text").innerHTML = task.right.html;
  $("left-text").scrollTop = $("right-text").scrollTop = 0;
  for (const side of ["left", "right"]) $(side + "-ratings").replaceChildren(...me.criteria.map((c) => rating(c, side)));
  $("note").value = draft.note;
  $("edit").value = draft.edited;
  for (const b of document.querySelectorAll(".choice")) {
    b.classList.remove("chosen");
    b.classList.toggle("before", before.choice === b.dataset.choice);
  }
  for (const side of ["left", "right"]) $(side).classList.remove("chosen");
  strength(draft.strength);
  flag(draft.flagged);
  box("note", draft.note !== "");
  box("edit", draft.edited !== "");
  show("task");
  since = shownAt = performance.now();
  tick();
  scrollTo(0, 0);
  $("prompt-title").focus({ preventScroll: true });
  tell(news || (task.before ? "Your vote is taken back. Judge the task again." : "The next task is here."));
}

const ROLES = { user: "Question", assistant: "Earlier answer", system: "Instruction to the model", tool: "Result of a tool" };

// Returns the elements of the turns of a prompt.
function spoken(prompt) {
  return prompt.map((said) => {
    const turn = element("div", null, said.role === "user" ? "turn" : "turn other");
    if (prompt.length > 1) turn.append(element("div", ROLES[said.role] || words(said.role), "who"));
    const text = element("div", null, "text");
    text.innerHTML = said.html;
    turn.append(text);
    turn.tabIndex = 0;
    turn.setAttribute("role", "region");
    turn.setAttribute("aria-label", ROLES[said.role] || said.role);
    return turn;
  });
}

function rating(criterion, side) {
  const set = document.createElement("fieldset");
  const legend = document.createElement("legend");
  legend.append(words(criterion.name));
  set.append(legend);
  for (let n = 1; n <= criterion.best; n++) {
    const label = document.createElement("label");
    label.className = "pill";
    const input = document.createElement("input");
    input.type = "radio";
    input.name = side + " " + criterion.name;
    input.value = n;
    input.checked = (draft.ratings[criterion.name] || {})[side] === n;
    input.setAttribute("aria-label", `${criterion.name}, answer ${side === "left" ? 1 : 2}: ${n} of ${criterion.best}`);
    input.addEventListener("change", () => {
      draft.ratings[criterion.name] = { ...draft.ratings[criterion.name], [side]: n };
      keep();
    });
    const face = document.createElement("span");
    face.textContent = n;
    face.setAttribute("aria-hidden", "true");
    label.append(input, face);
    set.append(label);
  }
  return set;
}

function rest(said) {
  const waiting = said.wait;
  $("rest").classList.toggle("waiting", Boolean(waiting));
  $("rest-title").textContent = waiting ? "Nothing to do right now" : "All done, thank you";
  const mine = said.progress ? said.progress.mine : 0;
  $("rest-text").textContent = waiting
    ? "Others are at work on what is left. This page looks again by itself."
    : mine ? `You have judged ${mine} ${mine === 1 ? "pair" : "pairs"}. You may close this page.` : "There is nothing to judge in this project yet.";
  $("rest-undo").hidden = !mine;
  show("rest");
  $("rest-title").focus({ preventScroll: true });
  tell($("rest-title").textContent);
  watching = setInterval(async () => {
    if (busy || document.hidden || $("rest").hidden) return;
    const said = await ask("next").catch(() => null);
    if (said && said.task && !busy) turn(said);
  }, waiting ? 4000 : 15000);
}

const spent = () => draft.spent + (document.hidden ? 0 : (performance.now() - since) / 1000);

function tick() {
  if (!task || !draft) return;
  const s = Math.floor(spent());
  $("time").textContent = Math.floor(s / 60) + ":" + String(s % 60).padStart(2, "0");
}
setInterval(tick, 500);

// Stores the vote in preparation, so that a reload does not lose it.
function keep() {
  if (!draft) return;
  draft.note = $("note").value;
  draft.edited = $("edit").value;
  draft.spent = spent();
  since = performance.now();
  sessionStorage.setItem(DRAFT, JSON.stringify(draft));
}

// ---- actions of a person

function ballot(choice) {
  keep();
  const one = choice === "left" || choice === "right";
  const ratings = {};
  for (const [name, sides] of Object.entries(draft.ratings)) if (Object.keys(sides).length) ratings[name] = sides;
  return {
    task: task.id, choice, ratings, flagged: draft.flagged, seconds: draft.spent,
    strength: one && me.strength ? draft.strength : null,
    note: draft.note.trim() || null,
    edited: me.edit && draft.edited.trim() ? draft.edited : null,
    request: crypto.getRandomValues(new Uint32Array(4)).reduce((all, n) => all + n.toString(16).padStart(8, "0"), ""),
  };
}

function judge(choice) {
  if (!task || busy || performance.now() - shownAt < THINK) return;
  const vote = ballot(choice);
  const button = document.querySelector(`.choice[data-choice="${choice}"]`);
  if (button) button.classList.add("chosen");
  if (choice === "left" || choice === "right") $(choice).classList.add("chosen");
  guarded(async () => {
    try {
      const said = await insist("vote", vote);
      sessionStorage.removeItem(DRAFT);
      turn(said, choice === "skip" ? "Skipped." : "Saved. The next task is here.");
    } finally {
      for (const mark of document.querySelectorAll(".answer.chosen, .choice.chosen")) mark.classList.remove("chosen");
    }
  });
}

function undo() {
  if (busy) return;
  guarded(async () => {
    const said = await insist("undo");
    sessionStorage.removeItem(DRAFT);
    turn(said);
  });
}

function flag(on) {
  draft.flagged = on;
  $("flag").setAttribute("aria-pressed", String(on));
}

function strength(n) {
  draft.strength = n;
  for (const input of document.querySelectorAll("input[name=strength]")) input.checked = input.value === String(n || "");
}

function box(name, open, focus = false) {
  $(name + "-box").hidden = !open;
  $("open-" + name).setAttribute("aria-expanded", String(open));
  if (open && focus) $(name).focus();
}

function begin(text) {
  $("edit").value = text;
  keep();
  $("edit").focus();
}

const ACTS = {
  1: () => judge("left"), 2: () => judge("right"), t: () => judge("tie"), b: () => judge("both_bad"), s: () => judge("skip"),
  u: undo,
  f: () => { flag(!draft.flagged); keep(); tell(draft.flagged ? "Flagged." : "No longer flagged."); },
  n: () => box("note", true, true),
  e: () => { if (me.edit) box("edit", true, true); },
  m: () => { if (me.strength) { strength(((draft.strength || 0) + 1) % 4 || null); keep(); } },
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || !me) return;
  const typing = event.target.matches("textarea, input[type=password]");
  if (typing) {
    if (event.key === "Escape") {
      keep();
      const name = event.target.id;
      box(name, event.target.value.trim() !== "");
      $("prompt-title").focus({ preventScroll: true });
    }
    return;
  }
  if (document.querySelector("dialog[open]")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "?") $("help").showModal();
  else if (key === "g" && me.guidelines) guidelines();
  else if (key === "u" && (!$("task").hidden || !$("rest").hidden)) undo();
  else if (ACTS[key] && !$("task").hidden && task) ACTS[key]();
  else return;
  event.preventDefault();
});

for (const b of document.querySelectorAll(".choice")) b.addEventListener("click", () => judge(b.dataset.choice));
$("skip").addEventListener("click", () => judge("skip"));
$("undo").addEventListener("click", undo);
$("rest-undo").addEventListener("click", undo);
$("flag").addEventListener("click", ACTS.f);
for (const name of ["note", "edit"]) {
  $("open-" + name).addEventListener("click", () => box(name, $(name + "-box").hidden, true));
  $(name).addEventListener("input", keep);
}
$("edit-left").addEventListener("click", () => begin(task.left.text));
$("edit-right").addEventListener("click", () => begin(task.right.text));
$("edit-none").addEventListener("click", () => { begin(""); box("edit", false); $("open-edit").focus(); });
for (const input of document.querySelectorAll("input[name=strength]")) {
  input.addEventListener("change", () => { strength(Number(input.value) || null); keep(); });
}
$("open-help").addEventListener("click", () => $("help").showModal());
const guidelines = () => { $("guidelines").showModal(); reachable(); };
$("open-guidelines").addEventListener("click", guidelines);
$("trouble-again").addEventListener("click", () => { if (again) again(); });
$("leave").addEventListener("click", () => {
  ask("leave", {}, true).catch(() => {});
  sessionStorage.removeItem(DRAFT);
  task = draft = null;
  signIn(null);
});
$("sign-in-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const pasted = $("token").value.trim();
  sessionStorage.setItem(KEPT, pasted.includes("token=") ? pasted.split("token=").pop() : pasted);
  $("token").value = "";
  trouble(null);
  start();
});

document.addEventListener("visibilitychange", () => {
  if (!draft) return;
  if (document.hidden) { draft.spent += (performance.now() - since) / 1000; since = performance.now(); sessionStorage.setItem(DRAFT, JSON.stringify(draft)); }
  else { since = performance.now(); ask("keep").catch(() => {}); }
});
// The page was closed or is reloaded: the server gives the task to somebody else unless the page is back soon.
addEventListener("pagehide", () => {
  if (token && task) { keep(); ask("leave", {}, true).catch(() => {}); }
});

// ---- the admin's view

const percent = (share) => share.of ? Math.round(100 * share.part / share.of) + " %" : "–";

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text instanceof Node) made.append(text);
  else if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function tile(name, value, beside) {
  const all = element("div");
  const figure = element("dd", value);
  if (beside instanceof Element) figure.append(beside);
  else if (beside) figure.append(element("small", beside));
  all.append(element("dt", name), figure);
  return all;
}

function member(m) {
  const row = element("tr");
  const name = element("th", words(m.name));
  name.scope = "row";
  row.append(name, element("td", m.kind));
  for (const n of [m.votes, m.skips, m.ties, m.flagged]) row.append(element("td", n, "number"));
  row.append(element("td", m.seconds === null ? "–" : m.seconds.toFixed(1), "number"));
  const side = element("td");
  if (m.left.of) {
    const tilt = element("span", null, "tilt");
    const meter = element("meter");
    meter.value = m.left.part / m.left.of;
    meter.setAttribute("aria-label", `${m.name} chose the left side in ${percent(m.left)}`);
    tilt.append(meter, percent(m.left));
    side.append(tilt);
  } else side.textContent = "–";
  row.append(side, element("td", percent(m.agreement), "number"));
  return row;
}

const SAID = { a: "A", b: "B", tie: "tie", both_bad: "both bad", skip: "skip" };

function dispute(d) {
  const all = element("article", null, "dispute");
  all.setAttribute("aria-label", "Pair " + d.pair);
  all.append(...spoken(d.prompt));
  const pairing = element("div", null, "pairing");
  for (const side of ["a", "b"]) {
    const text = element("div", null, "text");
    text.tabIndex = 0;
    text.setAttribute("role", "region");
    text.setAttribute("aria-label", "Answer " + side.toUpperCase());
    text.innerHTML = d[side];
    text.prepend(element("strong", side.toUpperCase()));
    pairing.append(text);
  }
  const foot = element("div", null, "row");
  const said = element("div", null, "said");
  for (const v of d.votes) {
    const vote = element("span", words(v.name));
    vote.append(": " + SAID[v.choice]);
    said.append(vote);
  }
  const verdicts = element("span", null, "row");
  for (const choice of ["a", "b", "tie", "both_bad"]) {
    const button = element("button", SAID[choice]);
    button.type = "button";
    button.className = "small";
    button.setAttribute("aria-label", `Decide pair ${d.pair}: ${SAID[choice]}`);
    button.addEventListener("click", () => guarded(async () => {
      await insist("adjudicate", { pair: d.pair, choice });
      tell(`Pair ${d.pair} is decided.`);
      await look();
    }));
    verdicts.append(button);
  }
  foot.append(said, verdicts);
  all.append(pairing, foot);
  return all;
}

let drawn = "";

async function look() {
  const o = await insist("overview");
  if (JSON.stringify(o) === drawn) return;
  drawn = JSON.stringify(o);
  const bar = element("progress");
  bar.max = Math.max(o.wanted, 1);
  bar.value = o.given;
  bar.setAttribute("aria-label", "Judgements given");
  const done = tile("Judgements", `${o.given} of ${o.wanted}`, bar);
  $("tiles").replaceChildren(
    done,
    tile("Pairs complete", `${o.complete} of ${o.pairs}`),
    tile("Agreement", percent(o.agreement), o.agreement.of ? `of ${o.agreement.of} comparisons; alpha ${o.alpha === null ? "not defined" : o.alpha.toFixed(2)}` : "needs pairs that two people see"),
    tile("Same answer again", percent(o.consistency), o.consistency.of ? `of ${o.consistency.of} hidden repeats` : "no repeat judged yet"),
    tile("Judged differently", o.disagreements.length, `${o.adjudicated} decided`),
  );
  $("people").replaceChildren(...o.people.map(member));
  $("open-text").textContent = o.disagreements.length
    ? `People judge ${o.disagreements.length} ${o.disagreements.length === 1 ? "pair" : "pairs"} differently. Your word counts instead of their votes; which answer is whose is not shown.`
    : "Nobody disagrees with anybody.";
  $("open-list").replaceChildren(...o.open.map(dispute));
  const remark = (f) => {
    const all = element("li", `Pair ${f.pair}, `);
    all.append(words(f.name), `: ${f.flagged ? "flagged. " : ""}`, words(f.note || ""));
    return all;
  };
  $("flags").replaceChildren(...(o.flags.length ? o.flags.map(remark) : [element("li", "None.")]));
  reachable();
}

$("open-overview").addEventListener("click", () => guarded(async () => {
  if (!$("overview").hidden) {
    turn(await insist("next"));
    return;
  }
  if (draft) keep();
  drawn = "";
  await look();
  show("overview");
  $("overview-title").focus({ preventScroll: true });
  watching = setInterval(() => { if (!busy && !document.hidden) look().catch(() => {}); }, 5000);
}));

// A link with another token was opened in this tab: somebody else signs in here.
addEventListener("hashchange", () => { if (location.hash.includes("token=")) start(); });
start();
