// A complete client for the gateway's JSON protocol, to copy or to learn from. It has no dependencies.
//
//   const client = new ResultClient("wss://gateway.example/ws", webSocketId, {
//     result: ({ authResult, messageId, data }) => { /* ask the REST API what to do next */ },
//     state: (name, detail) => { /* connecting, registering, registered, waiting, rejected, closed */ },
//     push: (name) => { /* "degraded": ask the REST API every few seconds; "restored": no longer */ },
//   });
//   client.open();
//
// `push` gets "degraded" when the node has been without Redis for some seconds, so that no results can arrive, and
// "restored" when they arrive again, after the retained ones. With retention, a page that asks only in between misses
// no result. All pages are told at the same moment: ask first after a random part of your interval, or all of them
// ask at once too.
//
// An open client is always in one of these states:
//
//   awake, with a connection     `#current`; beside it `#next`, which replaces it once it is registered
//   awake, between connections   `#timer` makes the next one
//   asleep                       nothing, until the page is back
//
// Timers and events of a connection belong to its object, and end with it.

const REGISTRATION = "/user/topic/registration";
const AUTHORIZATION = "/user/topic/authorization";
const ERROR = "/user/topic/error";
const STATUS = "/user/topic/status";

const FIRST_DELAY = 500; // ms: the maximum of the first delay; it doubles with every failure
const MAX_DELAY = 10_000; // ms
const OPEN_DEADLINE = 15_000; // ms: longer than the gateway's 10 s, so that its reason comes first
const CHECK_DEADLINE = 5_000; // ms: a live connection answers in much less
const DEGRADED_DELAY = 10_000; // ms without Redis before another node is tried
const MAX_DEGRADED_JITTER = 50_000; // ms: when all nodes are without Redis, trying does not help
const REMEMBERED = 100; // messageIds remembered, to recognise duplicates

/** Whether this is a valid webSocketId. */
export const isValidId = (id) => /^[A-Za-z0-9._~-]{1,200}$/.test(id);

/** One WebSocket and its deadline. After `drop`, or once it has ended, it calls nothing any more. */
class Connection {
  isRegistered = false;
  #socket;
  #ended;
  #deadline = 0;

  constructor(url, { opened, received, ended }) {
    this.#socket = new WebSocket(url);
    this.#socket.onopen = () => opened(this);
    this.#socket.onmessage = ({ data }) => received(this, data);
    this.#socket.onclose = ({ code, reason }) => this.#end(reason, code);
    this.#ended = ended;
    this.#expectAnswer(OPEN_DEADLINE);
  }

  get isOpen() {
    return this.#socket.readyState === WebSocket.OPEN;
  }

  send(text) {
    this.#socket.send(text);
  }

  /** Whether an answer is due. */
  get isWaiting() {
    return this.#deadline !== 0;
  }

  /** Sends what a live node answers. Without an answer, the connection ends. */
  check(text) {
    this.#expectAnswer(CHECK_DEADLINE);
    this.send(text);
  }

  answered() {
    this.isRegistered = true;
    clearTimeout(this.#deadline);
    this.#deadline = 0;
  }

  drop() {
    clearTimeout(this.#deadline);
    // Remove the handlers first: the close event of a dead connection can come a minute late.
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close();
  }

  #expectAnswer(delay) {
    clearTimeout(this.#deadline);
    this.#deadline = setTimeout(() => this.#end("no answer"), delay);
  }

  #end(reason, code) {
    this.drop();
    this.#ended(this, reason, code);
  }
}

export class ResultClient {
  /** What a node with `--registration signed` wants to see. A page may set it at any time. */
  token = undefined;
  #url;
  #id;
  #on;
  #current = null;
  #next = null; // another node, tried while the current one is degraded
  #timer = 0;
  #failures = 0;
  #wasRegistered = false;
  #seen = new Set();
  #last = undefined; // the latest messageId
  #push = "restored";
  #listening = null;
  #isAsleep = false;

  /**
   * `on` may hold the callbacks `state(name, detail)`, `result(message)`, `push(name)`, `error(error)` and
   * `frame(mark, text)`. They may call `open` and `close`.
   */
  constructor(url, webSocketId, on = {}) {
    this.#url = url;
    this.#id = webSocketId;
    this.#on = on;
  }

  /** Connects, registers, and stays registered until `close` or a rejection. Throws if the URL is not valid. */
  open() {
    if (this.#listening) return;
    this.#current = this.#dial();
    this.#isAsleep = false;
    this.#listen();
    this.#tell("state", "connecting");
  }

  /** Ends the connection and stops reconnecting; `open` starts again. */
  close() {
    this.#end("closed");
  }

  // The page

  #listen() {
    this.#listening = new AbortController();
    const { signal } = this.#listening;
    window.addEventListener("online", () => this.#isAsleep || this.#hurry(), { signal });
    document.addEventListener("visibilitychange", () => document.hidden || this.#wake(), { signal });
    // A page in the back/forward cache, or one that the browser freezes, would keep its connection, and the results
    // that come would be lost: Chromium ends the connection when the page resumes. On the way out of the cache it
    // fires resume, visibilitychange and pageshow, in this order.
    window.addEventListener("pagehide", () => this.#sleep(), { signal });
    document.addEventListener("freeze", () => this.#sleep(), { signal });
    document.addEventListener("resume", () => this.#wake(), { signal });
    window.addEventListener("pageshow", ({ persisted }) => persisted && this.#wake(), { signal });
  }

  #sleep() {
    this.#isAsleep = true;
    this.#dropAll();
  }

  #wake() {
    this.#isAsleep = false;
    this.#hurry();
  }

  // The user looks at the page again, perhaps after the banking app on the same phone, or the network is back.
  #hurry() {
    if (!this.#current) this.#connect();
    else if (!this.#current.isWaiting) this.#check(this.#current);
  }

  // A device that slept may have lost its connection unnoticed. Registering again is idempotent and shows it.
  #check(connection) {
    connection.check(this.#registration(this.token));
    this.#tellRegistration();
  }

  // Connections

  #dial() {
    return new Connection(this.#url, {
      opened: (connection) => this.#opened(connection),
      received: (connection, text) => this.#received(connection, text),
      ended: (connection, reason, code) => this.#lost(connection, reason, code),
    });
  }

  #connect() {
    clearTimeout(this.#timer);
    this.#current = this.#dial();
    this.#tell("state", "connecting");
  }

  #opened(connection) {
    connection.send(this.#registration(this.token));
    if (connection === this.#current) this.#tell("state", "registering");
    this.#tellRegistration();
  }

  #registration(token) {
    // Members that are undefined are left out.
    const last = { lastMessageId: this.#last, token, status: true };
    return JSON.stringify({ topic: REGISTRATION, webSocketId: this.#id, ...last });
  }

  // The page may show its frames, and a token is a secret.
  #tellRegistration() {
    this.#tell("frame", ">", this.#registration(this.token && "***"));
  }

  #lost(connection, reason, code) {
    if (connection.isRegistered) this.#failures = 0;
    if (connection === this.#next) {
      this.#next = null;
      this.#tryAnotherLater();
    } else if (this.#next) {
      this.#current = this.#next; // already on its way
      this.#next = null;
      this.#tell("state", this.#current.isOpen ? "registering" : "connecting");
    } else {
      this.#reconnectLater(reason, code);
    }
  }

  // Full jitter: a thousand browsers that lost the same node must not reconnect at the same moment.
  #reconnectLater(reason, code) {
    this.#dropAll();
    const delay = Math.random() * Math.min(MAX_DELAY, FIRST_DELAY * 2 ** this.#failures++);
    this.#timer = setTimeout(() => this.#connect(), delay);
    this.#tell("state", "waiting", { until: Date.now() + delay, reason, code });
  }

  // The balancer may know a node that has Redis. Until that one has registered this page, the present connection
  // stays: its node may be the first to have Redis again.
  #tryAnotherLater() {
    clearTimeout(this.#timer);
    const jitter = Math.random() * Math.min(MAX_DEGRADED_JITTER, DEGRADED_DELAY * 2 ** this.#failures++);
    this.#timer = setTimeout(() => (this.#next = this.#dial()), DEGRADED_DELAY + jitter);
  }

  #stay() {
    clearTimeout(this.#timer);
    this.#next?.drop();
    this.#next = null;
  }

  #dropAll() {
    this.#stay();
    this.#current?.drop();
    this.#current = null;
  }

  #end(state, detail) {
    this.#listening?.abort();
    this.#listening = null;
    this.#dropAll();
    this.#tell("state", state, detail);
  }

  // Messages

  #received(connection, text) {
    this.#tell("frame", "<", text);
    if (!this.#uses(connection)) return; // the page has closed the client in its callback
    const message = JSON.parse(text);
    if (message.topic === REGISTRATION) this.#answered(connection, message);
    if (message.topic === AUTHORIZATION && this.#isNew(message.messageId)) this.#tell("result", message);
    if (message.topic === STATUS) this.#statusReceived(connection, message.push);
    if (message.topic === ERROR) this.#tell("error", message.error);
  }

  #uses(connection) {
    return connection === this.#current || connection === this.#next;
  }

  #answered(connection, { registrationSucceeded, error }) {
    if (!registrationSucceeded) return this.#rejected(connection, error);
    const isFirst = !connection.isRegistered;
    connection.answered();
    this.#wasRegistered = true;
    if (connection === this.#next) this.#moveTo(connection);
    // The first answer on a new connection means that results arrive.
    if (isFirst) this.#pushIs("restored");
    if (this.#uses(connection)) this.#tell("state", "registered");
  }

  #moveTo(connection) {
    this.#current.drop();
    this.#current = connection;
    this.#next = null;
  }

  // A rejection is final: the same id would be rejected again. But an id that was registered once was announced, and
  // Redis may lack that for a moment after a failover: so `unknown_id` is not final then. And while another node is
  // tried, the present one still has the registration.
  #rejected(connection, error) {
    const isFinal = connection === this.#current && !(this.#wasRegistered && error?.code === "unknown_id");
    if (isFinal) return this.#end("rejected", error);
    connection.drop();
    this.#lost(connection, error?.message);
  }

  #statusReceived(connection, push) {
    if (connection === this.#current) {
      this.#pushIs(push);
    } else if (push === "degraded") {
      connection.drop(); // this node is no better
      this.#lost(connection);
    }
  }

  #pushIs(name) {
    if (name === this.#push) return;
    this.#push = name;
    this.#failures = 0;
    if (name === "degraded") this.#tryAnotherLater();
    else this.#stay();
    this.#tell("push", name);
  }

  // A retained result comes with every registration, except the one that this client names as its last. An older one
  // may come again after a reconnect.
  #isNew(messageId) {
    if (messageId === undefined) return true;
    this.#last = messageId;
    if (this.#seen.has(messageId)) return false;
    this.#seen.add(messageId);
    if (this.#seen.size > REMEMBERED) this.#seen.delete(this.#seen.values().next().value);
    return true;
  }

  // What a callback throws is reported as usual, and stops nothing here.
  #tell(name, ...details) {
    try {
      this.#on[name]?.(...details);
    } catch (error) {
      setTimeout(() => {
        throw error;
      });
    }
  }
}
