// The demo page: shows what client.js reports, and the commands that publish a result.

import { ResultClient, isValidId } from "./client.js";

const SLOW = 2000; // ms: a registration takes a few; if it takes this long, Redis is away
const RETAINED = 500; // ms: a retained result follows the registration's answer at once
const SHOWN_RESULTS = 50;
const SHOWN_FRAMES = 30;
const RETAIN_SECONDS = 300;
const BAD = /FAIL|CANCEL|REJECT|DENIED|EXPIRED|ERROR/;

const $ = (id) => document.getElementById(id);
const page = document.documentElement;
const CONNECTING = $("story").textContent;
let info = {}; // the answer of /demo/info; any member may be missing
let id = "";
let client = null;
let countdown = 0;
let slow = 0;
let lostReason = ""; // why the connection was lost, until it is back
let arrival = ""; // how the newest result came
let registeredAt = 0;

// The id: from the address bar, else the one that this tab had before a reload, else a new one.

function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(4));
  return "demo-" + Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function remembered() {
  try {
    return sessionStorage.getItem("webSocketId");
  } catch {
    return null; // storage is off: a reload makes a new id
  }
}

function remember(value) {
  try {
    sessionStorage.setItem("webSocketId", value);
  } catch {
    // as above
  }
}

function use(newId) {
  client?.close();
  id = newId;
  delete page.dataset.push;
  $("id").textContent = id;
  showCommands();
  forgetResults();
  if (!isValidId(id)) {
    const message = "an id must be 1 to 200 of A-Z a-z 0-9 . _ ~ -";
    return showState("rejected", { code: "invalid_id", message });
  }
  remember(id);
  const url = new URL("ws", location.href.replace(/^http/, "ws"));
  url.search = url.hash = "";
  client = new ResultClient(url.href, id, {
    state: showState,
    result: showResult,
    push: showPush,
    error: ({ message }) => announce(`Error from the gateway: ${message}`),
    frame: showFrame,
  });
  client.open();
}

// What to type.

const quoted = (word) => (/^[\w.:/@%+=,-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`);

function showCommands() {
  const { redisCli = "redis-cli", cli = "webflow-gateway", channelPrefix = "websocket:", redisUrl } = info;
  const channel = quoted(channelPrefix + id);
  const payload = { authResult: "CONFIRMED", messageId: "payment-1", data: { amount: "120.00", currency: "EUR" } };
  const options = [
    redisUrl && `--redis ${quoted(redisUrl)}`,
    channelPrefix !== "websocket:" && `--channel-prefix ${quoted(channelPrefix)}`,
    `--retain ${RETAIN_SECONDS}`,
  ].filter(Boolean);
  const result = [quoted(id), "CONFIRMED"];
  // An id that begins with - would be taken for an option.
  const words = id.startsWith("-") ? [...options, "--", ...result] : [...result, ...options];
  $("command-plain").textContent = `${redisCli} PUBLISH ${channel} CONFIRMED`;
  $("command-data").textContent = `${redisCli} PUBLISH ${channel} ${quoted(JSON.stringify(payload))}`;
  $("command-retained").textContent = `${cli} publish ${words.join(" ")}`;
}

async function copy(button) {
  const source = $(button.dataset.copies);
  const done = await copied(source);
  button.textContent = done ? "Copied" : "Press Ctrl+C";
  announce(done ? "Copied" : "Selected. Press Ctrl+C to copy.");
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

async function copied(source) {
  try {
    await navigator.clipboard.writeText(source.textContent);
    return true;
  } catch {
    // There is no clipboard outside https and localhost, for example on a phone in the same network. This still works.
    getSelection().selectAllChildren(source);
    return document.execCommand("copy");
  }
}

// The state of the connection.

const isDegraded = () => page.dataset.push === "degraded";

const STATES = {
  connecting: () => "Connecting",
  registering: () => "Connected, registering",
  registered: () =>
    (info.node ? `Registered on node ${info.node}` : "Registered") +
    (isDegraded() ? ", but the node has lost Redis" : ""),
  waiting: ({ until, reason }) => {
    const seconds = Math.max(0, (until - Date.now()) / 1000).toFixed(1);
    return `Reconnecting in ${seconds} s${reason ? ` (${reason})` : ""}`;
  },
  rejected: (error) => `Rejected: ${error?.message ?? "no reason given"}`,
  closed: () => "Offline",
};

const WAITS = "This browser waits for a result. Run a command below to approve.";
const DEGRADED =
  "No result can arrive until the node has Redis again, or another node registers this page. " +
  "Your own page would ask its server meanwhile.";

const STORIES = {
  connecting: () => lostReason || CONNECTING,
  registering: () => lostReason || CONNECTING,
  registered: () => (isDegraded() ? DEGRADED : arrival || WAITS),
  waiting: () => lostReason,
  rejected: () => "This id cannot be registered. Choose a new id.",
  closed: () => "No result can arrive now. A result that you publish with the second command is retained for this page.",
};

function whyLost({ code, reason }) {
  if (!code) return "The node does not answer. Reconnecting."; // the client gave up
  if (code === 1012) return "The node restarts. Reconnecting.";
  if (code === 1013) return "The node has no connection to Redis; its log says why. Reconnecting.";
  if (reason) return `The connection was closed: ${reason}. Reconnecting.`;
  return "The connection was lost without a reason. Reconnecting.";
}

function showStory() {
  $("story").textContent = STORIES[page.dataset.state]();
}

function showWaitingForRedis() {
  $("story").textContent = "The node waits for Redis, and registers this page as soon as it is connected.";
  announce($("story").textContent);
}

function showPush(name) {
  page.dataset.push = name;
  if (page.dataset.state === "registering" && isDegraded()) showWaitingForRedis();
  if (page.dataset.state !== "registered") return; // otherwise the state of the connection says more
  showRegistered();
  announce(isDegraded() ? DEGRADED : "Results can arrive again.");
  if (!isDegraded()) loadInfo().then(showRegistered); // it may be another node
}

function showRegistered() {
  if (page.dataset.state !== "registered") return;
  $("state").textContent = STATES.registered();
  showStory();
}

async function showState(state, detail) {
  const isNews = page.dataset.state !== state;
  page.dataset.state = state;
  clearInterval(countdown);
  clearTimeout(slow);
  const show = () => ($("state").textContent = STATES[state](detail));
  show();
  if (state === "waiting") countdown = setInterval(show, 100);
  if (state === "registering") slow = setTimeout(showWaitingForRedis, SLOW);
  if (state === "waiting") lostReason = whyLost(detail);
  if (["registered", "rejected", "closed"].includes(state)) lostReason = "";
  $("offline").textContent = state === "closed" ? "Go online" : "Go offline";
  $("offline").disabled = state === "rejected";
  showHeadline();
  showStory();
  if (!isNews) return;
  announce(state === "waiting" ? `Connection lost. ${lostReason}` : $("state").textContent);
  if (state === "registered") {
    registeredAt = performance.now();
    await loadInfo(); // after a reconnect it may be another node
    if (page.dataset.state === state) show();
  }
}

const HEADLINES = {
  connecting: "Connecting",
  registering: "Connecting",
  registered: "Waiting for your approval",
  waiting: "Connection lost",
  rejected: "Rejected",
  closed: "Offline",
};

function showHeadline() {
  $("headline").textContent = page.dataset.result || HEADLINES[page.dataset.state];
  document.title = `${$("headline").textContent} · Webflow Gateway`;
}

async function loadInfo() {
  try {
    const answer = await fetch("demo/info", { cache: "no-store" });
    info = answer.ok ? await answer.json() : { ...info, node: undefined };
  } catch {
    return; // the state of the connection says what is wrong
  }
  $("node").textContent = info.node ?? "unnamed";
  const port = /:(\d+)(\/|$)/.exec(info.redisUrl)?.[1];
  $("redis").textContent = port ? `port ${port}` : "pub/sub";
  $("version").textContent = info.version ?? "";
  showCommands();
}

// Results.

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function showResult({ authResult, messageId, data }) {
  const retained = performance.now() - registeredAt < RETAINED;
  const now = new Date();
  const time = element("time", "", now.toTimeString().slice(0, 8));
  time.dateTime = now.toISOString();
  const row = element("li", BAD.test(authResult) ? "bad" : "good", "");
  row.append(element("strong", "", authResult), time);
  if (retained) row.append(element("span", "", "was retained for this page"));
  if (messageId !== undefined) row.append(element("span", "", `messageId ${messageId}`));
  if (data !== undefined) row.append(element("pre", "", JSON.stringify(data, null, 1).replace(/\n */g, " ")));
  $("results").prepend(row);
  while ($("results").children.length > SHOWN_RESULTS) $("results").lastChild.remove();
  page.dataset.result = authResult;
  page.dataset.outcome = row.className;
  const way = retained ? ", retained until this page registered" : info.node ? ` through ${info.node}` : "";
  arrival = `Arrived at ${time.textContent}${way}. Run it again, or choose a new id.`;
  showHeadline();
  showStory();
  announce(`${authResult} arrived at ${time.textContent}${retained ? way : ""}`);
  lightUp();
}

function forgetResults() {
  $("results").replaceChildren();
  delete page.dataset.result;
  delete page.dataset.outcome;
  arrival = "";
}

function lightUp() {
  $("path").classList.remove("lit");
  void $("path").offsetWidth; // restarts the animation if a second result comes during the first
  $("path").classList.add("lit");
}

function showFrame(mark, text) {
  $("frames").prepend(element("li", mark === ">" ? "sent" : "received", text));
  while ($("frames").children.length > SHOWN_FRAMES) $("frames").lastChild.remove();
}

function announce(text) {
  $("announcement").textContent = text;
}

for (const button of document.querySelectorAll("[data-copies]")) {
  button.addEventListener("click", () => copy(button));
}
$("new-id").addEventListener("click", () => {
  history.replaceState(null, "", location.pathname); // a reload would read the id from the address again
  use(randomId());
});
$("offline").addEventListener("click", () => {
  if (page.dataset.state === "closed") client.open();
  else client.close();
});
loadInfo(); // also before the registration, so that the commands are right while Redis is away
use(new URLSearchParams(location.search).get("id") ?? remembered() ?? randomId());
