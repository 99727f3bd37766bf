// The demo page: shows what client.js reports, and the commands that make it report something.

import { ResultClient, isValidId } from "./client.js";

const SLOW = 2000; // ms: a registration takes a few; Redis is away when it takes so long
const KEPT = 500; // ms: a kept result comes in the same breath as the registration's answer
const SHOWN_RESULTS = 50;
const SHOWN_FRAMES = 30;
const RETAIN_SECONDS = 300;
const BAD = /FAIL|CANCEL|REJECT|DENIED|EXPIRED|ERROR/;

const $ = (id) => document.getElementById(id);
const page = document.documentElement;
const CONNECTING = $("story").textContent;
let info = {}; // what /demo/info tells; any member may be missing
let id = "";
let client = null;
let countdown = 0;
let slow = 0;
let trouble = ""; // why the connection was lost, until it is back
let arrival = ""; // how the newest result came
let registeredAt = 0;

// The id: from the address, else the one this tab had before a reload, else a new one.

function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(4));
  return "demo-" + Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function remembered() {
  try {
    return sessionStorage.getItem("webSocketId");
  } catch {
    return null; // storage is switched off: a reload then makes a new id
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
    const message = "an id is 1 to 200 of A-Z a-z 0-9 . _ ~ -";
    return showState("refused", { code: "invalid_id", message });
  }
  remember(id);
  const url = new URL("ws", location.href.replace(/^http/, "ws"));
  url.search = url.hash = "";
  client = new ResultClient(url.href, id, {
    state: showState,
    result: showResult,
    push: showPush,
    error: ({ message }) => announce(`The gateway says: ${message}`),
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
    id.startsWith("-") && "--", // or it would be taken for an option
  ];
  $("command-plain").textContent = `${redisCli} PUBLISH ${channel} CONFIRMED`;
  $("command-data").textContent = `${redisCli} PUBLISH ${channel} ${quoted(JSON.stringify(payload))}`;
  $("command-retained").textContent = `${cli} publish ${options.filter(Boolean).join(" ")} ${quoted(id)} CONFIRMED`;
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
    // No clipboard outside https and localhost: a phone on the same network, for one. The old way still works.
    getSelection().selectAllChildren(source);
    return document.execCommand("copy");
  }
}

// The state of the connection.

const isBlind = () => page.dataset.push === "degraded";

const STATES = {
  connecting: () => "Connecting",
  registering: () => "Connected, registering",
  registered: () =>
    (info.node ? `Registered on node ${info.node}` : "Registered") +
    (isBlind() ? ", but the node has lost Redis" : ""),
  waiting: ({ until, reason }) => {
    const seconds = Math.max(0, (until - Date.now()) / 1000).toFixed(1);
    return `Reconnecting in ${seconds} s${reason ? ` (${reason})` : ""}`;
  },
  refused: (error) => `Refused: ${error?.message ?? "no reason given"}`,
  closed: () => "Offline, because you asked for it",
};

const WAITS = "This browser waits. Play the phone with a command below: the result is here at once.";
const BLIND = "Nothing can arrive before the node has Redis back. A page of your own would ask its server meanwhile.";

const STORIES = {
  connecting: () => trouble || CONNECTING,
  registering: () => trouble || CONNECTING,
  registered: () => (isBlind() ? BLIND : arrival || WAITS),
  waiting: () => trouble,
  refused: () => "This id cannot be registered: take a new one.",
  closed: () => "Nothing reaches this page now; a result sent with the second command is kept for it.",
};

function whyLost({ code, reason }) {
  if (!code) return "The node does not answer. Trying again."; // it was the client that gave up
  if (code === 1012) return "The node restarts. Trying again.";
  if (code === 1013) return "The node cannot hear Redis; its log says why. Trying again.";
  if (reason) return `The connection ended: ${reason}. Trying again.`;
  return "The node gave no reason, and may be down. Trying again.";
}

function showStory() {
  $("story").textContent = STORIES[page.dataset.state]();
}

function showSlowness() {
  $("story").textContent = "The node is waiting for Redis, and registers this page as soon as it is there.";
  announce($("story").textContent);
}

function showPush(name) {
  page.dataset.push = name;
  if (page.dataset.state === "registering" && isBlind()) showSlowness();
  if (page.dataset.state !== "registered") return; // else the connection's own state says more
  $("state").textContent = STATES.registered();
  showStory();
  announce(isBlind() ? BLIND : "The node has Redis back.");
}

async function showState(state, detail) {
  const isNews = page.dataset.state !== state;
  page.dataset.state = state;
  clearInterval(countdown);
  clearTimeout(slow);
  const show = () => ($("state").textContent = STATES[state](detail));
  show();
  if (state === "waiting") countdown = setInterval(show, 100);
  if (state === "registering") slow = setTimeout(showSlowness, SLOW);
  if (state === "waiting") trouble = whyLost(detail);
  if (["registered", "refused", "closed"].includes(state)) trouble = "";
  $("offline").textContent = state === "closed" ? "Come back" : "Go offline";
  $("offline").disabled = state === "refused";
  showHeadline();
  showStory();
  if (!isNews) return;
  announce(state === "waiting" ? `Connection lost. ${trouble}` : $("state").textContent);
  if (state === "registered") {
    registeredAt = performance.now();
    await loadInfo(); // after a reconnect it may be another node that answers
    if (page.dataset.state === state) show();
  }
}

const HEADLINES = {
  connecting: "Connecting",
  registering: "Connecting",
  registered: "Waiting for your approval",
  waiting: "Connection lost",
  refused: "Refused",
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
    return; // the connection's own state says what is wrong
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
  const kept = performance.now() - registeredAt < KEPT;
  const now = new Date();
  const time = element("time", "", now.toTimeString().slice(0, 8));
  time.dateTime = now.toISOString();
  const row = element("li", BAD.test(authResult) ? "bad" : "good", "");
  row.append(element("strong", "", authResult), time);
  if (kept) row.append(element("span", "", "was waiting for this page"));
  if (messageId !== undefined) row.append(element("span", "", `messageId ${messageId}`));
  if (data !== undefined) row.append(element("pre", "", JSON.stringify(data, null, 1).replace(/\n */g, " ")));
  $("results").prepend(row);
  while ($("results").children.length > SHOWN_RESULTS) $("results").lastChild.remove();
  page.dataset.result = authResult;
  page.dataset.outcome = row.className;
  const way = kept ? ", after waiting for this page" : info.node ? ` through ${info.node}` : "";
  arrival = `Arrived at ${time.textContent}${way}. Run it again, or take a new id.`;
  showHeadline();
  showStory();
  announce(`${authResult} arrived at ${time.textContent}${kept ? way : ""}`);
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
  void $("path").offsetWidth; // a second result during the first one's animation starts it anew
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
  history.replaceState(null, "", location.pathname); // an id in the address would come back on reload
  use(randomId());
});
$("offline").addEventListener("click", () => {
  if (page.dataset.state === "closed") client.open();
  else client.close();
});
loadInfo(); // not only once registered: with Redis away the commands should be right all the same
use(new URLSearchParams(location.search).get("id") ?? remembered() ?? randomId());
