// SPDX-License-Identifier: GPL-3.0-or-later
// Keeps the page fresh: asks for it again, and puts what changed in the place of what is there. The server renders and
// filters; without this script the page is the same, and the button "Show" filters.
"use strict";

const REFRESH_MS = 5000;
const TYPING_MS = 250;

const form = document.getElementById("filter");
let tag = null;
let asked = 0;
let loaded = performance.now();

// Where the page is now, with what is typed into the filter.
function address() {
  if (!form) return location.pathname;
  const wanted = new URLSearchParams();
  for (const [name, value] of new FormData(form)) if (value) wanted.set(name, value);
  const query = wanted.toString();
  return location.pathname + (query ? `?${query}` : "");
}

async function refresh() {
  const number = ++asked;
  try {
    const answer = await fetch(address(), { cache: "no-cache", headers: { Accept: "text/html" } });
    if (!answer.ok) throw new Error(String(answer.status));
    const text = await answer.text();
    if (number !== asked) return; // a newer question is under way
    document.getElementById("lost").hidden = true;
    const now = answer.headers.get("ETag");
    if (now === null || now !== tag) swap(new DOMParser().parseFromString(text, "text/html"));
    tag = now;
  } catch {
    if (number === asked) document.getElementById("lost").hidden = false;
  }
}

// Each element with an id, from the outside in; one whose parts have ids is compared part by part.
function swap(fresh) {
  const focused = place(document.activeElement);
  document.title = fresh.title;
  for (const one of fresh.querySelectorAll("#verdict, #last, #numbers, #banners, #shown, #dom0, #about, #history, #calls, #heads")) {
    put(document.getElementById(one.id), one);
  }
  swapTable(document.getElementById("targets"), fresh.getElementById("targets"));
  loaded = performance.now();
  tick();
  if (focused) restore(focused);
}

function put(old, fresh) {
  if (!old || old.isEqualNode(fresh)) return;
  if (old.id === "verdict" || old.id === "shown") {
    // Those who hear the page are told of this element, so it has to stay.
    if (old.textContent !== fresh.textContent) old.replaceChildren(...document.importNode(fresh, true).childNodes);
    return;
  }
  const open = old.querySelector("details")?.open;
  const made = document.importNode(fresh, true);
  if (open) made.querySelector("details").open = true;
  old.replaceWith(made);
}

function swapTable(old, fresh) {
  if (!old || !fresh) return;
  const known = new Map([...old.tBodies].map((body) => [body.id, body]));
  let before = old.tHead;
  for (const body of fresh.tBodies) {
    let here = known.get(body.id);
    known.delete(body.id);
    if (!here || !here.isEqualNode(body)) {
      const made = document.importNode(body, true);
      if (here) here.replaceWith(made);
      here = made;
    }
    if (before.nextElementSibling !== here) before.after(here);
    before = here;
  }
  for (const body of known.values()) body.remove();
}

// Where the focus is: a link within the nearest element with an id.
function place(element) {
  if (!element || element === document.body || element.id) return null;
  const home = element.closest("[id]");
  if (!home) return null;
  const same = [...home.querySelectorAll(element.localName)];
  return { id: home.id, name: element.localName, number: same.indexOf(element), element };
}

function restore(focused) {
  if (focused.element.isConnected && document.activeElement === focused.element) return;
  document.getElementById(focused.id)?.querySelectorAll(focused.name)[focused.number]?.focus({ preventScroll: true });
}

// The age of the last scrape goes on between two questions. It does not need the clocks to agree.
function tick() {
  for (const time of document.querySelectorAll("time[data-age]")) {
    const seconds = Number(time.dataset.age) + Math.floor((performance.now() - loaded) / 1000);
    time.textContent = `${age(seconds)} ago`;
  }
}

function age(seconds) {
  for (const [unit, name] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= unit) return `${Math.floor(seconds / unit)} ${name}`;
  }
  return `${seconds} s`;
}

if (form) {
  let typing = 0;
  form.querySelector("button").hidden = true;
  form.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      history.replaceState(null, "", address());
      refresh();
    }, TYPING_MS);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    history.replaceState(null, "", address());
    refresh();
  });
}
setInterval(tick, 1000);
setInterval(() => {
  if (!document.hidden) refresh();
}, REFRESH_MS);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) refresh();
});
