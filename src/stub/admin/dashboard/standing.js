// Whether the stub takes new requests, who leads, and what people should know about it before anything else.

import { element, setAttribute, setText } from "./dom.js";
import * as format from "./format.js";

const READINESS = { ready: ["ready", "good"], "standing-by": ["stands by", "warn"], "shutting-down": ["shutting down", "warn"] };

/** A word about the stub for the head of the page, how it is to be taken, and the same at length. */
export function standing(status) {
  const [word, tone] = READINESS[status.readiness] ?? [status.readiness, "off"];
  const leads = status.readiness === "ready" && status.election?.leads;
  return { word: leads ? "leads" : word, tone, title: leader(status) ?? "It takes new requests." };
}

/** The part of a view that says why the stub gets no new requests; hidden while it does. */
export function standingNotice() {
  const node = element("p", { class: "notice", role: "status", hidden: true });
  const update = (data) => {
    const text = {
      "standing-by": `This stub stands by and gets no users. ${leader(data.status)}`,
      "shutting-down": `This stub is shutting down: it finishes what is open (${format.number(data.requests.total)}), and new requests go elsewhere.`,
    }[data.status.readiness];
    setText(node, text ?? "");
    setAttribute(node, "hidden", text === undefined);
  };
  return { node, update };
}

/** The part of a cluster's view that says which API server serves it, and which agents wait for it to change. */
export function apiServerNotice() {
  const uid = element("code");
  const known = element("p", { class: "fact", hidden: true }, "API server: the one whose namespace kube-system has the UID ", uid);
  const waiting = element("p", { class: "notice", role: "status", hidden: true });
  const update = (data) => {
    const [cluster] = data.status.clusters;
    setText(uid, cluster?.apiServer ?? "");
    known.hidden = !cluster?.apiServer;
    const agents = (cluster?.agents ?? []).filter((agent) => agent.state === "waiting");
    const names = agents.map((agent) => `${agent.name} (${agent.apiServer ?? "unknown"})`).join(", ");
    setText(waiting, `These agents lead to another API server, and get no requests while agents of this one are connected: ${names}`);
    waiting.hidden = agents.length === 0;
  };
  return { node: element("div", { class: "facts" }, known, waiting), update };
}

function leader({ election }) {
  if (!election) return null;
  const since = election.since ? ` since ${format.moment(election.since)}` : "";
  if (election.leads) return `This stub leads${since}.`;
  return election.leader ? `${election.leader} leads${since}.` : "Nobody leads at the moment.";
}
