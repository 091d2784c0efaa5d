"use strict";
// Texts of the catalogue go into the page as text alone (textContent), never as markup.
const byId = (id) => document.getElementById(id);
const history = []; // {item_id, title}
let asked = 0; // questions so far: an answer to an older one than the last is not shown
let asker = null; // the button whose question is answered below the answers
const NEWEST = 200; // events of a user that are taken
// Names of rankers as a heading, and what their scores are.
const RANKERS = {
  model: ["Tuned model", "Score: mean log-probability of a token, at best 0."],
  "base model": ["Base model", "The same before tuning."],
  popularity: ["Popularity", "Score: users who met it in the training data."],
  BM25: ["BM25", "Score: the query's words in its title, by stems."],
};

function make(name, text, parent, attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent.append(made);
  return made;
}

function say(text, isError = false) {
  byId("status").textContent = text;
  byId("status").className = isError ? "error" : "";
  if (isError) byId("status").scrollIntoView({ block: "nearest" }); // on a phone it may lie below the form
}

const counted = (number, noun) => number + " " + noun + (number === 1 ? "" : "s");

// Counts as they are, other numbers with three digits, a change with its sign; zero has none.
function written(number, isChange = false) {
  const digits = Number.isInteger(number) && !isChange ? String(Math.abs(number)) : Math.abs(number).toFixed(3);
  const sign = number < 0 ? "\u2212" : isChange ? "+" : "";
  return (Number(digits) ? sign : "") + digits;
}

async function call(method, path, body) {
  const headers = { "Content-Type": "application/json" };
  if (byId("token").value) headers.Authorization = "Bearer " + byId("token").value;
  let answer, found;
  try {
    answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
    found = await answer.json();
  } catch (error) {
    throw new Error("The service does not answer: is it still running?");
  }
  if (answer.ok) return found;
  if (answer.status === 401) {
    byId("token-part").hidden = false;
    byId("token").focus();
    throw new Error(byId("token").value ? "That is not the token of this service." : "This service asks for its token.");
  }
  const detail = found.detail;
  throw new Error(typeof detail === "string" ? detail : detail.map((one) => one.loc.join(" ") + ": " + one.msg).join("; "));
}

// What a press of a button does; an error is said where all is said.
function doing(action) {
  return async (event) => {
    event.preventDefault();
    try {
      await action(event);
    } catch (error) {
      say(error.message, true);
    }
  };
}

function showHistory() {
  const list = byId("history");
  list.replaceChildren();
  byId("history-label").textContent = history.length ? "History, " + counted(history.length, "item") + ", oldest first" : "History: empty";
  history.forEach((item, place) => {
    const row = make("div", "", make("li", "", list), { class: "row" });
    make("span", item.title, row);
    const remove = make("button", "Remove", row, { type: "button", "aria-label": "Remove " + item.title });
    remove.addEventListener("click", () => {
      history.splice(place, 1);
      showHistory();
      byId("item").focus(); // the button that was pressed is gone
      say("Removed " + item.title + ".");
    });
  });
  list.scrollTop = list.scrollHeight; // the newest
}

function fill(list, values) {
  list.replaceChildren();
  for (const [value, text] of values) make("option", text, list, { value });
}

// Enter in a field does what the button behind it does, not what the form's last button does.
function onEnter(field, action) {
  byId(field).addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing) doing(action)(event);
  });
}

// The last of some calls in a row alone: people type.
function later(action) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(doing(action), 200, new Event("input"));
  };
}

async function suggestUsers() {
  const found = await call("GET", "v1/users?like=" + encodeURIComponent(byId("user").value));
  fill(byId("users"), found.users.map((name) => [name, name]));
}

async function suggestItems() {
  const found = await call("GET", "v1/items?like=" + encodeURIComponent(byId("item").value));
  fill(byId("items"), found.items.map((item) => [item.item_id, item.title]));
}

async function takeHistory() {
  const found = await call("GET", "v1/users/" + encodeURIComponent(byId("user").value));
  history.splice(0, history.length, ...found.history.slice(-NEWEST));
  showHistory();
  const left = found.history.length - history.length;
  say("Took the " + counted(history.length, left ? "newest item" : "item") + " of " + found.user + (left ? "; " + left + " older left out." : "."));
}

// By id, by the whole title, or by words that only one title has.
async function addItem() {
  const sought = byId("item").value.trim();
  if (!sought) throw new Error("Type words of a title, and choose one.");
  const { items } = await call("GET", "v1/items?like=" + encodeURIComponent(sought));
  const same = items.filter((one) => one.item_id === sought || one.title.toLowerCase() === sought.toLowerCase());
  const [item, ...others] = same.length ? same : items;
  if (!item) throw new Error("No item has " + sought + " in its title.");
  if (others.length) throw new Error("Several items have " + sought + " in their titles: choose one.");
  history.push(item);
  byId("item").value = "";
  showHistory();
  say("Added " + item.title + ".");
}

function request() {
  const query = byId("query").value.trim();
  const sent = { task: query ? "src" : "rec", history: history.map((item) => item.item_id) };
  return query ? { ...sent, query } : sent;
}

function column(ranker, items, sent) {
  const [name, means] = RANKERS[ranker] || [ranker, ""];
  const part = make("section", "", byId("answers"), { "aria-label": name });
  make("h2", name, part);
  make("p", items.length ? means : "Nothing found.", part, { class: "means" });
  const list = make("ol", "", part);
  for (const item of items) {
    const row = make("div", "", make("li", "", list), { class: "row" });
    const title = make("span", item.title, row);
    if (item.known) make("span", "in the history", title, { class: "known" });
    make("span", written(item.score), row, { class: "score" });
    if (sent) {
      const why = make("button", "Why?", row, { type: "button", "aria-label": "Why? " + item.title });
      why.addEventListener("click", doing(() => explain(sent, item, why)));
    }
  }
}

async function ask() {
  const number = ++asked;
  say("Asking…");
  byId("answers").setAttribute("aria-busy", "true");
  try {
    const sent = request();
    const [answer, beside] = await Promise.all([call("POST", "v1/rank", sent), call("POST", "v1/beside", sent)]);
    if (number === asked) show(sent, answer, beside);
  } catch (error) {
    if (number === asked) throw error;
  } finally {
    if (number === asked) byId("answers").removeAttribute("aria-busy");
  }
}

function show(sent, answer, beside) {
  byId("answers").replaceChildren();
  byId("notes").replaceChildren();
  byId("why").hidden = true;
  answer.notes.forEach((note) => make("li", note, byId("notes")));
  column("model", answer.items, sent);
  for (const [name, items] of Object.entries(beside)) column(name, items);
  say(counted(answer.items.length, "item") + (sent.query ? " found" : " recommended") + ", best first.");
}

async function explain(sent, item, pressed) {
  say("Leaving out each item of the history…");
  const found = await call("POST", "v1/explain", { ...sent, item_id: item.item_id });
  if (!pressed.isConnected) return; // other answers are there by now
  byId("why-title").textContent = "Why " + item.title + "?";
  byId("why-score").textContent = "Score " + written(found.score) + (found.history.length ? "" : ". The history is empty: nothing can be left out.");
  byId("why-rows").replaceChildren();
  for (const moved of found.history) {
    const row = make("tr", "", byId("why-rows"));
    make("td", moved.title, row);
    make("td", written(moved.change, true), row);
  }
  byId("why").hidden = false;
  asker = pressed;
  byId("why-title").focus();
  say("");
}

byId("ask").addEventListener("submit", doing(ask));
byId("show-user").addEventListener("click", doing(takeHistory));
byId("add-item").addEventListener("click", doing(addItem));
byId("back").addEventListener("click", () => asker.focus());
byId("use-token").addEventListener("click", doing(begin));
onEnter("token", begin);
onEnter("user", takeHistory);
onEnter("item", addItem);
byId("user").addEventListener("input", later(suggestUsers));
byId("item").addEventListener("input", later(suggestItems));
byId("query").addEventListener("input", showTask);

function showTask() {
  byId("submit").textContent = byId("query").value.trim() ? "Search" : "Recommend";
}

// With what stands in the fields.
async function begin() {
  await suggestUsers();
  const example = byId("users").firstElementChild;
  byId("user").placeholder = example ? "such as " + example.value : "";
  say("");
  if (byId("user").value) await takeHistory();
  if (byId("user").value || byId("query").value) await ask();
}

// An address such as /#user=ann&query=lamp asks at once.
async function start() {
  const given = new URLSearchParams(location.hash.slice(1));
  byId("user").value = given.get("user") || "";
  byId("query").value = given.get("query") || "";
  showTask();
  await begin();
}
doing(start)(new Event("load"));
