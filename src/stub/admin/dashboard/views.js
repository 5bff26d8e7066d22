// The views. Each is made of parts, and every part is given all that the stub says.

import { Chart, Spark } from "./chart.js";
import { element, setAttribute, setText } from "./dom.js";
import * as format from "./format.js";
import { apiServerNotice, standingNotice } from "./standing.js";
import { Table } from "./table.js";

const LAST = 5;
const sum = (values) => values.reduce((total, value) => total + value, 0);
const agentsOf = (data) => data.status.clusters.flatMap((cluster) => cluster.agents);
const openCluster = (id) => {
  location.hash = `#/clusters/${encodeURIComponent(id)}`;
};

const STATE_TONES = { healthy: "good", "upstream down": "bad", late: "warn", suspect: "bad", draining: "warn", waiting: "warn" };
const KINDS = {
  unauthenticated: ["unauthenticated", "warn"],
  denied: ["denied", "warn"],
  "forbidden-by-cluster": ["forbidden by cluster", "warn"],
  revoked: ["revoked", "bad"],
  failed: ["failed", "bad"],
  "broken-off": ["broken off", "bad"],
};

/** The view at a route: its title, the cluster it is about, its node, and what updates it. */
export function viewAt(route) {
  const [name, argument] = route;
  if (name === "" && argument === undefined) return overview();
  if (name === "clusters" && argument !== undefined) return cluster(argument);
  const tables = { clusters: ["Clusters", clusterTable], agents: ["Agents", agentTable], requests: ["Live requests", requestTable], incidents: ["Denials and errors", incidentTable] };
  if (argument === undefined && Object.hasOwn(tables, name)) {
    const [title, make] = tables[name];
    return view(title, null, [], [make({ filter: true })]);
  }
  return view("Nothing is here", null, [element("p", { class: "nothing" }, "There is no such page.")], []);
}

function overview() {
  const parts = [
    tiles(),
    charts(),
    clusterTable({ limit: 8 }),
    requestTable({ limit: 8 }),
    incidentTable({ limit: 8 }),
  ];
  return view("Overview", null, [], parts);
}

function cluster(id) {
  const back = element("a", { class: "back", href: "#/clusters" }, "← All clusters");
  const missing = element("p", { class: "notice", hidden: true }, "The stub knows no cluster of that name.");
  const absent = { node: missing, update: (data) => { missing.hidden = data.status.clusters.length > 0; } };
  const parts = [absent, apiServerNotice(), tiles(), charts(), agentTable({}), requestTable({ filter: true }), incidentTable({ filter: true })];
  return view(id, id, [back], parts);
}

function view(title, about, before, contents) {
  const parts = [standingNotice(), ...contents];
  const nodes = parts.map((part) => part.node);
  return {
    title,
    cluster: about,
    node: element("div", { class: "view" }, ...before, element("h1", {}, title), ...nodes),
    update: (data) => parts.forEach((part) => part.update(data)),
    focusFilter: () => parts.some((part) => part.focusFilter?.()),
  };
}

function tiles() {
  const all = [
    tile("Agents", "good", (data) => {
      const agents = agentsOf(data);
      const healthy = agents.filter((agent) => agent.state === "healthy").length;
      return { value: `${healthy}`, detail: `healthy of ${agents.length}`, bad: healthy < agents.length || agents.length === 0 };
    }),
    tile("Open requests", "violet", (data) => ({ value: format.number(data.requests.total), detail: "now", curve: data.series.open })),
    tile("Requests", "blue", (data) => ({ value: format.number(recent(data.series.requests)), detail: "per second", curve: data.series.requests })),
    tile("Throughput", "teal", (data) => {
      const both = data.series.bytesToClients.map((rate, index) => rate + data.series.bytesFromClients[index]);
      return { value: format.throughput(recent(both)), detail: "both ways", curve: both };
    }),
    tile("Latency p99", "amber", (data) => {
      const known = data.series.p99Ms.filter((value) => value !== null);
      return { value: format.milliseconds(known.at(-1)), detail: "to the head of an answer", curve: data.series.p99Ms };
    }),
    tile("Failed", "red", (data) => ({
      value: format.number(recent(data.series.failed)),
      detail: "per second",
      curve: data.series.failed,
      bad: recent(data.series.failed) > 0,
    })),
  ];
  const node = element("ul", { class: "tiles" }, ...all.map((each) => each.node));
  return { node, update: (data) => all.forEach((each) => each.update(data)) };
}

// The mean of the last samples: a single one is hectic.
const recent = (values) => (values.length === 0 ? 0 : sum(values.slice(-LAST)) / Math.min(values.length, LAST));

function tile(label, tone, measure) {
  const value = element("b", {}, "–");
  const detail = element("span", { class: "detail" });
  const spark = new Spark(tone);
  const node = element("li", { class: `card tile tone-${tone}` }, element("span", { class: "label" }, label), value, detail, spark.node);
  return {
    node,
    update: (data) => {
      const measured = measure(data);
      setText(value, measured.value);
      setText(detail, measured.detail);
      setAttribute(node, "data-bad", measured.bad ? "" : null);
      spark.update(measured.curve ?? []);
    },
  };
}

function charts() {
  const all = [
    new Chart({
      title: "Throughput",
      binary: true,
      format: format.throughput,
      lines: [
        { field: "bytesToClients", label: "to clients", tone: "teal", area: true },
        { field: "bytesFromClients", label: "from clients", tone: "blue", area: true },
      ],
    }),
    new Chart({
      title: "Latency",
      format: format.milliseconds,
      lines: [
        { field: "p99Ms", label: "p99", tone: "amber", area: true },
        { field: "p50Ms", label: "p50", tone: "violet", area: false },
      ],
    }),
    new Chart({
      title: "Requests per second",
      format: format.number,
      lines: [
        { field: "requests", label: "all", tone: "blue", area: true },
        { field: "failed", label: "failed", tone: "red", area: true },
      ],
    }),
  ];
  const node = element("div", { class: "charts" }, ...all.map((chart) => chart.node));
  return { node, update: (data) => all.forEach((chart) => chart.update(data.series)) };
}

function table(options, rows, total = undefined) {
  const made = new Table(options);
  return {
    node: made.node,
    update: (data) => made.update(rows(data), total?.(data)),
    focusFilter: () => made.focusFilter(),
  };
}

function clusterTable(options) {
  const state = (row) => {
    if (row.agents.length === 0) return "no agent";
    const healthy = row.agents.filter((agent) => agent.state === "healthy").length;
    return healthy === row.agents.length ? "healthy" : healthy > 0 ? "degraded" : "down";
  };
  const tones = { healthy: "good", degraded: "warn", down: "bad", "no agent": "off" };
  const total = (field) => (row) => sum(row.agents.map((agent) => agent[field]));
  const columns = [
    { label: "Cluster", text: (row) => row.id, look: "strong" },
    { label: "State", text: state, tone: (row) => tones[state(row)] },
    { label: "Agents", numeric: true, value: (row) => row.agents.length, text: (row) => String(row.agents.length) },
    { label: "Open", numeric: true, value: total("openStreams"), text: (row) => format.number(total("openStreams")(row)) },
    { label: "Requests/s", numeric: true, value: total("requestRate"), text: (row) => format.number(total("requestRate")(row)) },
    { label: "Throughput", numeric: true, value: total("byteRate"), text: (row) => format.throughput(total("byteRate")(row)) },
    { label: "Carried", numeric: true, value: total("bytesToClients"), text: (row) => format.bytes(total("bytesToClients")(row) + total("bytesFromClients")(row)) },
    { label: "API server", hint: "the UID of the namespace kube-system there", text: (row) => row.apiServer ?? "–" },
  ];
  const empty = "No cluster yet. `qtunnel token create --cluster ID` makes the first.";
  return table({ title: "Clusters", columns, key: (row) => row.id, open: (row) => openCluster(row.id), sort: { column: 0 }, empty, ...options }, (data) => data.status.clusters);
}

function agentTable(options) {
  const state = (row) => (row.suspectForMs === null ? row.state : `${row.state} for ${format.duration(row.suspectForMs)}`);
  const columns = [
    { label: "Agent", text: (row) => row.name, look: "strong" },
    { label: "Cluster", text: (row) => row.cluster },
    { label: "State", text: state, tone: (row) => STATE_TONES[row.state] ?? "off" },
    { label: "Carrier", text: carrier, tone: (row) => (row.carrier === "quic" ? "plain" : "warn") },
    { label: "RTT", numeric: true, value: (row) => row.rttMs, text: (row) => format.milliseconds(row.rttMs) },
    { label: "Loss", numeric: true, value: (row) => row.loss ?? -1, text: (row) => format.percent(row.loss) },
    { label: "Moved", hint: "how often it was seen at another address since it connected", numeric: true, value: (row) => row.pathChanges, text: (row) => format.number(row.pathChanges) },
    { label: "Open", numeric: true, value: (row) => row.openStreams, text: (row) => format.number(row.openStreams) },
    { label: "Requests/s", numeric: true, value: (row) => row.requestRate, text: (row) => format.number(row.requestRate) },
    { label: "Throughput", numeric: true, value: (row) => row.byteRate, text: (row) => format.throughput(row.byteRate) },
    { label: "API server", text: (row) => row.upstreamError || format.milliseconds(row.upstreamLatencyMs) },
    { label: "Version", text: (row) => row.software },
    { label: "Connected", numeric: true, value: (row) => Date.now() - new Date(row.connectedSince), text: (row) => format.since(row.connectedSince) },
    { label: "Address", text: (row) => row.address },
  ];
  return table({ title: "Agents", columns, key: (row) => row.id, open: (row) => openCluster(row.cluster), sort: { column: 0 }, empty: "No agent is connected.", ...options }, agentsOf);
}

function requestTable(options) {
  const columns = [
    { label: "User", text: person, look: "strong" },
    { label: "Verb", text: (row) => row.verb, tone: () => "plain" },
    { label: "Resource", text: (row) => row.resource },
    { label: "Object", text: object },
    { label: "Cluster", text: (row) => row.cluster },
    { label: "Agent", text: (row) => row.agent ?? "waiting" },
    { label: "From", text: (row) => row.source },
    { label: "For", numeric: true, value: (row) => row.durationMs, text: (row) => format.duration(row.durationMs) },
    { label: "To client", numeric: true, value: (row) => row.bytesToClient, text: (row) => format.bytes(row.bytesToClient) },
    { label: "From client", numeric: true, value: (row) => row.bytesFromClient, text: (row) => format.bytes(row.bytesFromClient) },
  ];
  return table({ title: "Live requests", columns, key: (row) => row.id, open: (row) => openCluster(row.cluster), sort: { column: 7, descending: true }, empty: "No request is open.", ...options }, (data) => data.requests.requests, (data) => data.requests.total);
}

function incidentTable(options) {
  const columns = [
    { label: "At", value: (row) => new Date(row.at).getTime(), text: (row) => format.clock(row.at), numeric: true },
    { label: "What", text: (row) => KINDS[row.kind]?.[0] ?? row.kind, tone: (row) => KINDS[row.kind]?.[1] ?? "off" },
    { label: "Code", numeric: true, value: (row) => row.code, text: (row) => (row.code === 0 ? "–" : String(row.code)) },
    { label: "Times", numeric: true, value: (row) => row.count, text: (row) => format.number(row.count) },
    { label: "User", text: (row) => (row.user === "" ? "nobody known" : person(row)), look: "strong" },
    { label: "Verb", text: (row) => row.verb, tone: () => "plain" },
    { label: "Resource", text: (row) => row.resource },
    { label: "Object", text: object },
    { label: "Cluster", text: (row) => row.cluster || "–" },
    { label: "From", text: (row) => row.source },
    { label: "Why", text: (row) => row.message, look: "wide" },
  ];
  return table({ title: "Denials and errors", columns, key: (row) => row.auditId, sort: { column: 0, descending: true }, empty: "Nothing went wrong lately.", ...options }, (data) => data.incidents);
}

function carrier(row) {
  return row.resumedWith0rtt ? `${row.carrier}, 0-RTT` : row.carrier;
}

function object(row) {
  if (row.namespace === "") return row.name || "–";
  return row.name === "" ? `${row.namespace}/*` : `${row.namespace}/${row.name}`;
}

function person(row) {
  return row.requestedUser === null ? row.user : `${row.user} as ${row.requestedUser}`;
}
