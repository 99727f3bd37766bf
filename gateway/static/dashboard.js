// The dashboard: what the nodes report once a second, as sentences, charts and a table; and the look-up of one id.
//
// A node's report has counters, from which this page computes rates. Nothing older than five minutes is kept, here or
// on the nodes. What nodes say is shown as text only: it came through Redis, where others may write as well.

import { SPAN, area, band, canvas, line, quantile, scale, trace } from "./dashboard.chart.js";

const AVERAGED = 5; // seconds over which the numbers beside the charts are averaged
const MEASURED = 10; // seconds over which percentiles are computed
const RETRY = 2000; // ms until a rejected stream is opened again
const SILENCE = 3; // seconds without an event or a probe that are shown as a problem

const $ = (id) => document.getElementById(id);
const page = document.documentElement;
const nodes = new Map(); // by the id of the process
const totals = {}; // [time, value] by chart
let snapshot = null; // the latest event
let heardAt = 0; // when it came
let paused = false;
let spoken = "";

// Numbers and words.

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const precise = new Intl.NumberFormat("en", { maximumSignificantDigits: 2 });

const count = (value) => (value === 0 || value >= 10 ? grouped.format(value) : precise.format(value));
const perSecond = (value) => `${count(value)}/s`;
const short = (seconds) =>
  seconds < 1 ? `${precise.format(seconds * 1000)} ms` : `${precise.format(seconds)} s`;

function long(seconds) {
  if (seconds < 120) return `${Math.floor(seconds)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

const plural = (number, one, many) => `${grouped.format(number)} ${number === 1 ? one : many}`;
const clock = (date) => date.toTimeString().slice(0, 8);

function element(tag, className, ...content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...content);
  return made;
}

function write(target, text) {
  if (target.textContent !== text) target.textContent = text; // unchanged text keeps its selection
}

// The totals of all reports.

const CHARTS = {
  sessions: { show: count, least: 10, value: (all) => sum(all, ({ last }) => last.sessions) },
  registered: { show: perSecond, least: 1, value: (all) => sum(all, (node) => rate(node, "registered")), averaged: true },
  delivered: { show: perSecond, least: 1, value: (all) => sum(all, (node) => rate(node, "delivered")), averaged: true },
  latency: { show: short, least: 0.001, value: (all) => percentile(all, "latency", 0.99), faint: (all) => percentile(all, "latency", 0.5) },
  roundTrip: { show: short, least: 0.001, value: (all) => most(all.map(({ last }) => last.redis.round_trip)) },
  lag: { show: short, least: 0.01, value: (all) => most(all.map((node) => percentile([node], "lag", 0.99))) },
};

const sum = (all, of) => all.map(of).reduce((one, other) => (other === null ? one : (one ?? 0) + other), null);

function most(values) {
  const known = values.filter((value) => value !== null && value !== undefined);
  return known.length ? Math.max(...known) : null;
}

/** How much the counter rose in a second, between the last two reports. */
function rate({ recent }, counter) {
  if (recent.length < 2) return null;
  const [before, last] = recent.slice(-2);
  return last.clock > before.clock ? Math.max(0, last[counter] - before[counter]) / (last.clock - before.clock) : null;
}

/** A percentile of the latest durations, in seconds; null if there were none. */
function percentile(all, what, part) {
  const bounds = all[0]?.last[what].bounds ?? [];
  const counts = new Array(bounds.length + 1).fill(0); // up to each bound, and all
  for (const { recent } of all) {
    const [first, last] = [recent[0], recent[recent.length - 1]].map((report) => report[what].counts);
    if (first.length === counts.length && last.length === counts.length) {
      last.forEach((number, index) => (counts[index] += number - first[index]));
    }
  }
  return quantile(bounds, counts, part);
}

function state({ redis }) {
  if (!redis.connected) return "down";
  return redis.probe_age > SILENCE ? "unsure" : "up";
}

function take(news, now) {
  snapshot = news;
  heardAt = now;
  const ids = new Set(news.nodes.map(({ id }) => id));
  const all = news.nodes.map((report) => {
    const node = nodes.get(report.id) ?? { recent: [], band: inherited(report, ids) };
    nodes.set(report.id, node);
    node.last = report;
    node.seen = now;
    node.recent = [...node.recent, report].slice(-MEASURED - 1);
    node.band.push([now, state(report)]);
    return node;
  });
  for (const [id, node] of nodes) {
    node.band = node.band.filter(([time]) => now - time <= SPAN);
    if (now - node.seen > SPAN) nodes.delete(id);
  }
  for (const [name, { value, faint }] of Object.entries(CHARTS)) {
    const kept = (totals[name] ?? []).filter(([time]) => now - time <= SPAN);
    totals[name] = [...kept, [now, value(all), faint ? faint(all) : null]];
  }
}

/** The history of a process that is gone and had the name of this one: the node has been restarted. */
function inherited({ node: name }, present) {
  for (const [id, { band, last }] of nodes) {
    if (last.node === name && !present.has(id)) {
      nodes.delete(id);
      return band;
    }
  }
  return [];
}

// What is wrong, in sentences.

/** The nodes that did not answer the last question, but one in the last five minutes. */
function missingNodes() {
  const answered = new Set(snapshot.nodes.map(({ id }) => id));
  return [...nodes.values()].filter(({ last }) => !answered.has(last.id));
}

function troubles(now) {
  const found = [];
  const say = (tone, text) => found.push({ tone, text });
  if (now - heardAt > SILENCE) {
    say("bad", `This page has received nothing for ${long(now - heardAt)}: the node at ${location.host} is down or unreachable`);
  }
  for (const report of snapshot.nodes) {
    for (const { tone, text } of report.troubles) say(tone, `${report.node} ${text}`);
  }
  if (snapshot.reason) say("warn", `Other nodes cannot be shown: ${snapshot.reason}`);
  else {
    for (const { last, seen } of missingNodes()) {
      if (last.draining) say("note", `${last.node} has drained and stopped`);
      else say("bad", `${last.node} has not answered for ${long(now - seen)}`);
    }
    const unnamed = snapshot.silent - missingNodes().filter(({ last }) => !last.draining).length;
    if (unnamed > 0) say("bad", `${plural(unnamed, "node is", "nodes are")} connected to Redis and did not answer`);
  }
  const order = ["bad", "warn", "note"];
  return found.sort((one, other) => order.indexOf(one.tone) - order.indexOf(other.tone));
}

function showVerdict(now) {
  const found = troubles(now);
  const [first, ...others] = found;
  const grave = first && first.tone !== "note";
  const number = snapshot.nodes.length;
  page.dataset.tone = grave ? first.tone : "good";
  const single = number === 1 && !snapshot.reason;
  const well = single ? "The only node is healthy" : `All ${number} nodes are healthy`;
  write($("headline"), grave ? first.text : well);
  const receives = `${single ? "The" : "Each"} node receives what is published to Redis.`;
  const listed = grave ? others : [...found, { tone: "good", text: receives }];
  const rows = Array.from($("troubles").children);
  listed.forEach(({ tone, text }, index) => {
    const row = rows[index] ?? $("troubles").appendChild(element("li"));
    row.className = tone;
    write(row, text);
  });
  rows.slice(listed.length).forEach((row) => row.remove());
  document.title = `${grave ? $("headline").textContent : "All healthy"} · Webflow Gateway`;
  announce(found.map(({ text }) => text).join(". ") || $("headline").textContent);
}

/** Tell screen readers what is new, but not how the seconds pass. */
function announce(text) {
  const gist = text.replace(/[\d.]+ (s|min|h|ms)\b/g, "");
  if (gist === spoken) return;
  spoken = gist;
  write($("announcement"), text);
}

// Charts.

function prepare(figure) {
  const svg = canvas("grid", "area", "faint", "line");
  trace(svg, "grid", "M0 0.5H300M0 50H300M0 99.5H300");
  const plot = element("div", "plot", svg, element("span", "top"), element("span", "middle"));
  figure.append(plot, element("p", "axis", element("span", "", "5 min ago"), element("span", "", "now")));
}

function showChart(figure, now) {
  const name = figure.dataset.chart;
  const { show, least, averaged } = CHARTS[name];
  const points = totals[name];
  const known = points.map(([, value]) => value).filter((value) => value !== null);
  const top = scale(Math.max(0, ...known), least);
  const svg = figure.querySelector("svg");
  trace(svg, "area", area(points, now, top));
  trace(svg, "line", line(points, now, top));
  trace(svg, "faint", line(points.map(([time, , faint]) => [time, faint]), now, top));
  write(figure.querySelector(".top"), show(top));
  write(figure.querySelector(".middle"), show(top / 2));
  const latest = averaged ? average(points, now) : points[points.length - 1][1];
  const text = latest === null ? "–" : show(latest);
  write(figure.querySelector("output"), text);
  const title = figure.querySelector("b").textContent;
  const course = known.length ? `from ${show(Math.min(...known))} to ${show(Math.max(...known))}` : "nothing yet";
  svg.setAttribute("aria-label", `${title}, the last five minutes: ${course}; now ${latest === null ? "nothing" : text}`);
}

function average(points, now) {
  const lately = points.filter(([time, value]) => now - time < AVERAGED && value !== null);
  return lately.length ? lately.reduce((one, [, value]) => one + value, 0) / lately.length : null;
}

// The table.

const STATES = ["up", "unsure", "down"];

function row(node) {
  if (node.row) return node.row;
  const cells = Array.from({ length: 6 }, (_, index) => element(index ? "td" : "th", ""));
  cells.forEach((cell, index) => cell.setAttribute("role", index ? "cell" : "rowheader")); // on phones CSS makes it a grid
  cells[0].scope = "row";
  cells[0].append(element("b"), element("small"));
  cells[1].append(element("span", "words"), canvas(...STATES));
  node.row = element("tr", "", ...cells);
  node.row.setAttribute("role", "row");
  return node.row;
}

function showNode(node, now) {
  const { cells } = row(node);
  const { last } = node;
  const here = snapshot.nodes.includes(last);
  node.row.className = here ? state(last) : snapshot.reason ? "unasked" : "gone";
  write(cells[0].children[0], last.node);
  write(cells[0].children[1], last.id === snapshot.id ? `${last.version}, this node` : last.version);
  const words = here ? redisInWords(last.redis) : `${snapshot.reason ? "not asked" : "no answer"} for ${long(now - node.seen)}`;
  write(cells[1].children[0], words);
  const strip = cells[1].children[1];
  STATES.forEach((name) => trace(strip, name, band(node.band, now, name)));
  strip.setAttribute("aria-label", `Redis outages in the last five minutes: ${downtime(node)}`);
  write(cells[2], here ? count(last.sessions) : "–");
  const rates = ["registered", "delivered"].map((counter) => (here ? rate(node, counter) : null));
  [cells[3], cells[4]].forEach((cell, index) => write(cell, rates[index] === null ? "–" : perSecond(rates[index])));
  write(cells[5], here ? long(last.up) : "–");
}

function redisInWords({ connected, servers: all, servers_up: up, down_for: downFor, probe_age: probeAge, round_trip: trip }) {
  if (!connected) return (all > 1 ? `${up} of ${all} servers` : "outage") + (downFor === null ? "" : ` for ${long(downFor)}`);
  if (probeAge > SILENCE) return `no probe received for ${long(probeAge)}`;
  const servers = all > 1 ? `${all} servers, ` : "";
  return servers + (trip === null ? "connected" : `round trip ${short(trip)}`);
}

const downtime = (node) => long(node.band.filter(([, is]) => is === "down").length);

function showNodes(now) {
  const all = [...nodes.values()].sort((one, other) => one.last.node.localeCompare(other.last.node, "en", { numeric: true }));
  const shown = all.map((node) => {
    showNode(node, now);
    return node.row;
  });
  const present = Array.from($("nodes").children);
  if (shown.some((tr, index) => tr !== present[index]) || shown.length !== present.length) $("nodes").replaceChildren(...shown);
}

// Once a second, and at each event.

function show() {
  if (paused || !snapshot) return;
  const now = performance.now() / 1000;
  write($("node"), snapshot.node);
  write($("version"), snapshot.version);
  write($("port"), snapshot.port);
  write($("seen"), now - heardAt > SILENCE ? "No connection to the node" : `As of ${clock(new Date(Date.now() - (now - heardAt) * 1000))}`);
  showVerdict(now);
  for (const figure of $("charts").children) showChart(figure, now);
  showNodes(now);
}

function listen() {
  const source = new EventSource("dashboard/events");
  source.onmessage = ({ data }) => {
    take(JSON.parse(data), performance.now() / 1000);
    show();
  };
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, RETRY); // an EventSource does not retry after an answer other than 200
    if (!snapshot) write($("headline"), "The node does not answer yet");
  };
}

function pause() {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", paused);
  write($("pause"), paused ? "Resume" : "Pause");
  if (paused) write($("seen"), `Paused at ${clock(new Date())}`);
  show();
}

// The look-up.

async function lookUp(event) {
  event.preventDefault();
  const id = $("id").value.trim();
  const shown = $("found");
  shown.replaceChildren(element("p", "", "Asking all nodes …"));
  try {
    const answer = await fetch(`dashboard/session?${new URLSearchParams({ webSocketId: id })}`, { cache: "no-store" });
    const body = await answer.json();
    shown.replaceChildren(...(answer.ok ? found(body) : [element("p", "bad", body.error.message)]));
  } catch {
    shown.replaceChildren(element("p", "bad", "The node does not answer"));
  }
}

function found({ sessions, more, retained, silent, reason, nodes: asked }) {
  const parts = [];
  const nobody = `None of the ${plural(asked, "node", "nodes")} that answered holds this id.`;
  if (!sessions.length) parts.push(element("p", "", asked === 1 ? "The one node that answered does not hold this id." : nobody));
  parts.push(...sessions.map(sessionInWords));
  if (more) parts.push(element("p", "", `${plural(more, "further session", "further sessions")} with this id.`));
  if (silent) parts.push(element("p", "bad", `${plural(silent, "node", "nodes")} did not answer.`));
  if (reason) parts.push(element("p", "warn", `Other nodes could not be asked: ${reason}`));
  parts.push(element("p", "", retainedInWords(retained)));
  return parts;
}

function sessionInWords(session) {
  const pairs = [
    ["Node", session.node],
    ["State", session.state],
    ["Protocol", `${session.protocol} over ${session.transport}`],
    ["Client", session.address],
    ["Registered", since(session.registered_for)],
    ["Results", `${count(session.results)}${session.degraded ? "; degraded: the node has lost Redis" : ""}`],
    ["messageIds", session.message_ids.length ? session.message_ids.join(", ") : "none"],
  ];
  return element("dl", "", ...pairs.map(([name, text]) => element("div", "", element("dt", "", name), element("dd", "", text))));
}

function since(seconds) {
  if (seconds === null) return "not yet";
  return `${clock(new Date(Date.now() - seconds * 1000))}, ${long(seconds)} ago`;
}

function retainedInWords({ present, announced, seconds, reason }) {
  if (present === null) return `Whether Redis has a retained result is unknown: ${reason}`;
  const rest = seconds === null ? "without an expiry" : `for ${long(seconds)} more`;
  if (announced) return `This id is announced, ${rest}. Redis has no retained result for it yet.`;
  if (!present) return "Redis has no retained result for this id.";
  return `Redis has a retained result for this id, ${rest}.`;
}

Array.from($("charts").children).forEach(prepare);
$("pause").addEventListener("click", pause);
$("lookup").addEventListener("submit", lookUp);
setInterval(() => performance.now() / 1000 - heardAt > 1.5 && show(), 1000); // without events, the page says so
listen();
