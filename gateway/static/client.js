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

const REGISTRATION = "/user/topic/registration";
const AUTHORIZATION = "/user/topic/authorization";
const ERROR = "/user/topic/error";
const STATUS = "/user/topic/status";

const FIRST_DELAY = 500; // ms: the maximum of the first delay; it doubles with every failure
const MAX_DELAY = 10_000; // ms
const OPEN_DEADLINE = 15_000; // ms: longer than the gateway's 10 s, so that its reason comes first
const CHECK_DEADLINE = 5_000; // ms: a live connection answers in much less
const REMEMBERED = 100; // messageIds remembered, to recognise duplicates

/** Whether this is a valid webSocketId. */
export const isValidId = (id) => /^[A-Za-z0-9._~-]{1,200}$/.test(id);

export class ResultClient {
  #url;
  #id;
  #on;
  #socket = null;
  #state = "closed";
  #timer = 0;
  #failures = 0;
  #seen = new Set();
  #last = undefined; // the latest messageId
  #push = "restored";
  #listening = null;

  /**
   * `on` may hold the callbacks `state(name, detail)`, `result(message)`, `push(name)`, `error(error)` and
   * `frame(mark, text)`.
   */
  constructor(url, webSocketId, on) {
    this.#url = url;
    this.#id = webSocketId;
    this.#on = on;
  }

  /** Connects, registers, and stays registered until `close` or a rejection. */
  open() {
    if (this.#listening) return;
    this.#listening = new AbortController();
    const { signal } = this.#listening;
    window.addEventListener("online", () => this.#hurry(), { signal });
    document.addEventListener("visibilitychange", () => document.hidden || this.#hurry(), { signal });
    // A page in the back/forward cache would keep its connection, and its results would be lost.
    window.addEventListener("pagehide", () => this.#drop(), { signal });
    window.addEventListener("pageshow", ({ persisted }) => persisted && this.#connect(), { signal });
    this.#connect();
  }

  /** Ends the connection and stops reconnecting; `open` starts again. */
  close() {
    this.#end("closed");
  }

  #connect() {
    this.#enter("connecting");
    this.#expectAnswer(OPEN_DEADLINE);
    const socket = new WebSocket(this.#url);
    this.#socket = socket;
    socket.onopen = () => {
      this.#enter("registering");
      this.#register();
    };
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = ({ code, reason }) => this.#retry(reason, code);
  }

  #register() {
    // Members that are undefined are left out.
    const asked = { lastMessageId: this.#last, status: this.#on.push ? true : undefined };
    const text = JSON.stringify({ topic: REGISTRATION, webSocketId: this.#id, ...asked });
    this.#on.frame?.(">", text);
    this.#socket.send(text);
  }

  #receive(text) {
    this.#on.frame?.("<", text);
    const message = JSON.parse(text);
    if (message.topic === REGISTRATION) this.#answered(message);
    if (message.topic === AUTHORIZATION && this.#isNew(message.messageId)) this.#on.result?.(message);
    if (message.topic === STATUS) this.#pushIs(message.push);
    if (message.topic === ERROR) this.#on.error?.(message.error);
  }

  #answered({ registrationSucceeded, error }) {
    // A rejection is final: the same id would be rejected again. Everything else is worth a retry.
    if (!registrationSucceeded) return this.#end("rejected", error);
    clearTimeout(this.#timer);
    this.#failures = 0;
    // The first answer on a new connection means that results arrive.
    if (this.#state !== "registered") this.#pushIs("restored");
    this.#enter("registered");
  }

  #pushIs(name) {
    if (name === this.#push) return;
    this.#push = name;
    this.#on.push?.(name);
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

  // Full jitter: a thousand browsers that lost the same node must not reconnect at the same moment.
  #retry(reason, code) {
    this.#drop();
    const delay = Math.random() * Math.min(MAX_DELAY, FIRST_DELAY * 2 ** this.#failures++);
    this.#timer = setTimeout(() => this.#connect(), delay);
    this.#enter("waiting", { until: Date.now() + delay, reason, code });
  }

  // The user looks at the page again, perhaps after the banking app on the same phone: reconnect at once.
  #hurry() {
    if (this.#state === "waiting") {
      clearTimeout(this.#timer);
      this.#connect();
    } else if (this.#state === "registered") {
      // A device that slept may have lost its connection unnoticed. Registering again is idempotent and shows it.
      this.#expectAnswer(CHECK_DEADLINE);
      this.#register();
    }
  }

  #expectAnswer(deadline) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#retry("no answer"), deadline);
  }

  #end(state, detail) {
    this.#listening?.abort();
    this.#listening = null;
    this.#drop();
    this.#enter(state, detail);
  }

  // Remove the handlers first: the close event of a dead connection can come a minute late.
  #drop() {
    clearTimeout(this.#timer);
    if (!this.#socket) return;
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close();
    this.#socket = null;
  }

  #enter(state, detail) {
    this.#state = state;
    this.#on.state?.(state, detail);
  }
}
