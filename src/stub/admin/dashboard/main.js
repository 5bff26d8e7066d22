// The page: which view is shown, and the keys that work everywhere.

import { Feed } from "./data.js";
import { setAttribute, setText } from "./dom.js";
import * as format from "./format.js";
import { standing } from "./standing.js";
import { viewAt } from "./views.js";

const content = document.getElementById("content");
const links = [...document.querySelectorAll("#views a")];
let current = null;
let latest = null;

const feed = new Feed((data) => {
  if (data.error === null) {
    latest = data;
    current.update(data);
    setText(document.getElementById("stub"), data.status.stub);
    showStanding(data.status);
    setText(document.getElementById("about"), `qtunnel ${data.status.version}, up for ${format.since(data.status.startedAt)}`);
  }
  const connection = document.getElementById("connection");
  setText(connection, data.error === null ? "live" : "no answer from the stub");
  setAttribute(connection, "class", data.error === null ? "connection live" : "connection lost");
  setAttribute(connection, "title", data.error);
});

function showStanding(status) {
  const { word, tone, title } = standing(status);
  const node = document.getElementById("standing");
  setText(node, word);
  setAttribute(node, "class", `pill ${tone}`);
  setAttribute(node, "title", title);
}

function show() {
  const route = location.hash.replace(/^#\/?/, "").split("/").map(decoded);
  const before = current;
  current = viewAt(route);
  content.replaceChildren(current.node);
  document.title = `${current.title} · qtunnel`;
  for (const link of links) {
    const name = link.hash.replace(/^#\/?/, "");
    setAttribute(link, "aria-current", name === route[0] ? "page" : null);
  }
  // What is known already is shown at once, unless it is about something else.
  if (latest !== null && before?.cluster === current.cluster) current.update(latest);
  if (before !== null) {
    content.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  feed.about(current.cluster);
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function onKey(event) {
  const writes = event.target.matches("input, textarea, select");
  if (event.key === "Escape" && writes) {
    event.target.value = "";
    event.target.dispatchEvent(new Event("input"));
    event.target.blur();
  }
  if (writes || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/" && current.focusFilter()) event.preventDefault();
  if (event.key === "t") document.getElementById("theme").click();
  links[Number(event.key) - 1]?.click();
}

document.querySelector(".skip").addEventListener("click", (event) => {
  // The part after the # says which view is shown.
  event.preventDefault();
  content.focus();
});
addEventListener("hashchange", show);
addEventListener("keydown", onKey);
show();
