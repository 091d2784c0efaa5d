"use strict";
// Texts of the catalogue go into the page as text alone (textContent), never as markup.
const byId = (id) => document.getElementById(id);
const history = []; // {item_id, title}
const NEWEST = 200; // events of a user that are taken

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
}

async function call(method, path, body) {
  const headers = { "Content-Type": "application/json" };
  if (byId("token").value) headers.Authorization = "Bearer " + byId("token").value;
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  const found = await answer.json();
  if (answer.ok) return found;
  if (answer.status === 401) byId("token-part").open = true;
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
  history.forEach((item, place) => {
    const row = make("li", item.title + " ", list);
    const remove = make("button", "Remove", row, { type: "button", "aria-label": "Remove " + item.title });
    remove.addEventListener("click", () => {
      history.splice(place, 1);
      showHistory();
      byId("item").focus(); // the button that was pressed is gone
      say("Removed " + item.title + ".");
    });
  });
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
  say("Took " + history.length + " of the " + found.history.length + " items that " + found.user + " knows.");
}

async function addItem() {
  const item = await call("GET", "v1/items/" + encodeURIComponent(byId("item").value));
  history.push(item);
  byId("item").value = "";
  showHistory();
  say("Added " + item.title + ".");
}

function request() {
  const query = byId("query").value.trim();
  const asked = { task: query ? "src" : "rec", history: history.map((item) => item.item_id) };
  return query ? { ...asked, query } : asked;
}

function column(name, items, asked) {
  const part = make("section", "", byId("answers"), { "aria-label": name });
  make("h2", name, part);
  if (!items.length) make("p", "Nothing found.", part);
  const list = make("ol", "", part);
  for (const item of items) {
    const row = make("li", item.title + " ", list);
    make("span", item.score.toFixed(3) + (item.known ? ", in the history " : " "), row, { class: "score" });
    if (asked) {
      const why = make("button", "Why?", row, { type: "button", "aria-label": "Why? " + item.title });
      why.addEventListener("click", doing(() => explain(asked, item)));
    }
  }
}

async function ask() {
  say("Asking…");
  byId("answers").setAttribute("aria-busy", "true");
  try {
    await show(request());
  } finally {
    byId("answers").removeAttribute("aria-busy");
  }
}

async function show(asked) {
  const [answer, beside] = await Promise.all([call("POST", "v1/rank", asked), call("POST", "v1/beside", asked)]);
  byId("answers").replaceChildren();
  byId("notes").replaceChildren();
  byId("why").hidden = true;
  answer.notes.forEach((note) => make("li", note, byId("notes")));
  column("The model", answer.items, asked);
  for (const [name, items] of Object.entries(beside)) column(name, items);
  say(answer.items.length + " items, best first.");
}

async function explain(asked, item) {
  say("Leaving out each item of the history…");
  const found = await call("POST", "v1/explain", { ...asked, item_id: item.item_id });
  byId("why-title").textContent = "Why " + item.title + "? Score " + found.score.toFixed(3);
  byId("why-rows").replaceChildren();
  for (const moved of found.history) {
    const row = make("tr", "", byId("why-rows"));
    make("td", moved.title, row);
    make("td", (moved.change > 0 ? "+" : "") + moved.change.toFixed(3), row);
  }
  byId("why").hidden = false;
  byId("why-title").focus();
  say("");
}

byId("ask").addEventListener("submit", doing(ask));
byId("show-user").addEventListener("click", doing(takeHistory));
byId("add-item").addEventListener("click", doing(addItem));
onEnter("user", takeHistory);
onEnter("item", addItem);
byId("user").addEventListener("input", later(suggestUsers));
byId("item").addEventListener("input", later(suggestItems));
// An address such as /#user=ann&query=lamp asks at once.
async function start() {
  const given = new URLSearchParams(location.hash.slice(1));
  byId("user").value = given.get("user") || "";
  byId("query").value = given.get("query") || "";
  await suggestUsers();
  if (given.get("user")) await takeHistory();
  if (given.get("user") || given.get("query")) await ask();
}
doing(start)(new Event("load"));
