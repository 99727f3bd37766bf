// client.js without a browser: every socket, timer and event of the page is played by the test.
//
// `node --test tests/browser/client.test.mjs` runs it; CLIENT names another file than the shipped one.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { beforeEach, test } from "node:test";

const FILE = process.env.CLIENT ?? new URL("../../gateway/static/client.js", import.meta.url);
const SOURCE = readFileSync(FILE, "utf8");
const { ResultClient } = await import("data:text/javascript," + encodeURIComponent(SOURCE));

const SEEDS = 300; // random walks
const STEPS = 60; // of each of them

// The page

class Clock {
  now = 0;
  timers = new Map();
  #last = 0;

  set = (run, delay = 0) => {
    this.timers.set(++this.#last, { run, at: this.now + delay });
    return this.#last;
  };
  clear = (id) => this.timers.delete(id);

  /** Let `delay` ms pass, and run what is due. */
  pass(delay) {
    const end = this.now + delay;
    for (;;) {
      const due = [...this.timers].filter(([, { at }]) => at <= end).sort(([, a], [, b]) => a.at - b.at)[0];
      if (!due) break;
      this.timers.delete(due[0]);
      this.now = Math.max(this.now, due[1].at);
      due[1].run();
    }
    this.now = end;
  }
}

class FakeSocket {
  static OPEN = 1; // as in browsers
  static all = [];
  static live = () => FakeSocket.all.filter((socket) => !socket.over);

  onopen = this.onmessage = this.onclose = null;
  isOpen = false;
  over = false; // closed by one side or the other
  sent = [];

  get readyState() {
    return this.over ? 3 : Number(this.isOpen);
  }
  constructor() {
    FakeSocket.all.push(this);
  }
  send(text) {
    // As in browsers: too early is an error, and too late is nothing.
    if (!this.isOpen && !this.over) throw new DOMException("still connecting", "InvalidStateError");
    if (!this.over) this.sent.push(JSON.parse(text));
  }
  close() {
    this.over = true; // `onclose` comes later: the test calls `ends`
  }

  // What the network does.
  opens() {
    this.isOpen = true;
    this.onopen?.({});
  }
  says(message) {
    this.onmessage?.({ data: JSON.stringify(message) });
  }
  ends(code = 1006, reason = "") {
    this.over = true;
    this.onclose?.({ code, reason });
  }
}

const answer = { topic: "/user/topic/registration", webSocketId: "a", registrationSucceeded: true };
const refusal = (code) => ({ ...answer, registrationSucceeded: false, error: { code, message: "no" } });
const result = (messageId) => ({ topic: "/user/topic/authorization", authResult: "DONE", messageId });
const status = (push) => ({ topic: "/user/topic/status", push });

let clock, page, doc, heard, client, thrown;

beforeEach(() => {
  clock = new Clock();
  page = new EventTarget();
  doc = Object.assign(new EventTarget(), { hidden: false });
  heard = [];
  thrown = [];
  FakeSocket.all = [];
  Math.random = () => 1; // every wait is the longest that may be
  const fakes = { window: page, document: doc, WebSocket: FakeSocket };
  Object.assign(globalThis, fakes, { setTimeout: clock.set, clearTimeout: clock.clear });
  client = clientWith();
});

// Node, like a browser, reports what a listener throws as uncaught; here it fails the test.
process.on("uncaughtException", (error) => thrown.push(error));
const nothingThrown = () => new Promise(setImmediate).then(() => assert.deepEqual(thrown, []));

/** A client that notes what the page is told; `more` are callbacks that are called as well. */
function clientWith(more = {}) {
  const note = (kind) => (...said) => {
    heard.push(kind === "result" ? `result ${said[0].messageId}` : `${kind} ${said[0]}`);
    more[kind]?.(...said);
  };
  const on = Object.fromEntries(["state", "result", "push", "error"].map((kind) => [kind, note(kind)]));
  return new ResultClient("ws://node/ws", "a", { ...on, ...(more.frame && { frame: more.frame }) });
}

const last = () => FakeSocket.all.at(-1);
const fire = (target, name, more = {}) => target.dispatchEvent(Object.assign(new Event(name), more));
const hide = (hidden) => {
  doc.hidden = hidden;
  fire(doc, "visibilitychange");
};
/** Into the back/forward cache, in Chromium's order. */
const sleep = () => {
  fire(page, "pagehide", { persisted: true });
  hide(true);
  fire(doc, "freeze");
};
/** And out of it: Chromium says that the page is visible before it says that the page is back. */
const wake = () => {
  fire(doc, "resume");
  hide(false);
  fire(page, "pageshow", { persisted: true });
};
const register = () => {
  last().opens();
  last().says(answer);
};
const registered = () => {
  client.open();
  register();
  heard.length = 0;
  return last();
};
/** A registered client whose node has lost Redis, and which tries another one. */
const seeking = () => {
  const old = registered();
  old.says(status("degraded"));
  clock.pass(20_000);
  assert.equal(FakeSocket.all.length, 2, "it tries another node");
  heard.length = 0;
  return [old, last()];
};

// In these states a client is met by everything that can happen.
const STATES = {
  "never opened": () => {},
  connecting: () => client.open(),
  registering: () => {
    client.open();
    last().opens();
  },
  registered,
  "being checked": () => {
    registered();
    fire(page, "online");
  },
  degraded: () => registered().says(status("degraded")),
  "trying another node": seeking,
  "registering with another node": () => seeking()[1].opens(),
  waiting: () => registered().ends(),
  asleep: () => {
    registered();
    sleep();
  },
  "asleep after waiting": () => {
    registered().ends();
    sleep();
  },
  rejected: () => {
    client.open();
    last().opens();
    last().says(refusal("invalid_id"));
  },
  closed: () => {
    registered();
    client.close();
  },
};

// One life of a connection

test("a client connects, registers, and tells what came", async () => {
  client.open();
  register();
  const { webSocketId, status } = last().sent[0];
  assert.deepEqual([webSocketId, status], ["a", true]);
  last().says(result("m1"));
  last().says({ topic: "/user/topic/error", error: "e" });
  assert.deepEqual(heard, ["state connecting", "state registering", "state registered", "result m1", "error e"]);
  assert.equal(clock.timers.size, 0);
  await nothingThrown();
});

test("a lost connection is made again, later and later, at a random moment", () => {
  registered();
  for (const longest of [500, 1000, 2000, 4000, 8000, 10_000, 10_000]) {
    last().ends(1012, "service restart");
    const before = FakeSocket.all.length;
    clock.pass(longest - 1);
    assert.equal(FakeSocket.all.length, before);
    clock.pass(1);
    assert.equal(FakeSocket.all.length, before + 1);
  }
  register();
  last().ends();
  Math.random = () => 0;
  clock.pass(500); // the registration has reset the wait
  last().ends();
  const before = FakeSocket.all.length;
  clock.pass(0);
  assert.equal(FakeSocket.all.length, before + 1, "full jitter: from nothing to the longest");
});

test("a client without callbacks asks for the status too, because it may have to try another node", () => {
  client = new ResultClient("ws://node/ws", "a");
  client.open();
  register();
  assert.equal(last().sent[0].status, true);
  last().says(status("degraded"));
  clock.pass(20_000);
  assert.equal(FakeSocket.all.length, 2);
});

test("a node that never answers is given up", () => {
  client.open();
  last().opens();
  clock.pass(15_000);
  assert.ok(last().over);
  assert.equal(heard.at(-1), "state waiting");
});

test("a registration names the last result, and a result is told once", () => {
  registered().says(result("m1"));
  last().says(result("m1"));
  last().ends();
  clock.pass(500);
  register();
  assert.equal(last().sent[0].lastMessageId, "m1");
  last().says(result("m1"));
  assert.equal(heard.filter((said) => said === "result m1").length, 1);
});

test("a first rejection is final", () => {
  client.open();
  last().opens();
  last().says(refusal("unknown_id"));
  assert.equal(heard.at(-1), "state rejected");
  clock.pass(60_000);
  assert.equal(FakeSocket.all.length, 1);
});

test("unknown_id is not final after the id was registered once", () => {
  registered();
  fire(page, "online");
  last().says(refusal("unknown_id"));
  assert.deepEqual(heard, ["state waiting"]);
  clock.pass(500);
  last().opens();
  last().says(refusal("unknown_id"));
  assert.equal(heard.at(-1), "state waiting", "nor on the next connection");
  clock.pass(1000);
  register();
  assert.equal(heard.at(-1), "state registered");
});

test("another rejection is final at any time", () => {
  registered().ends();
  clock.pass(500);
  last().opens();
  last().says(refusal("not_authorized"));
  assert.equal(heard.at(-1), "state rejected");
  assert.equal(clock.timers.size, 0);
});

// A connection that is over

test("a dropped connection's late events change nothing", () => {
  const old = registered();
  sleep();
  wake();
  register();
  heard.length = 0;
  const timers = clock.timers.size;
  old.says(result("m9"));
  old.ends(1006);
  old.opens();
  assert.deepEqual(heard, []);
  assert.equal(clock.timers.size, timers);
  assert.equal(FakeSocket.live().length, 1);
});

test("a check of an old connection does not end the new one", () => {
  const old = registered();
  fire(page, "online"); // starts the deadline of a check
  old.ends();
  clock.pass(500);
  register();
  clock.pass(60_000);
  assert.equal(FakeSocket.live().length, 1);
  assert.equal(heard.at(-1), "state registered");
});

// Sleep and return

test("a page that comes back from the back/forward cache registers again, and throws nothing", async () => {
  const old = registered();
  sleep();
  assert.ok(old.over, "a page that sleeps holds no connection");
  wake();
  assert.equal(FakeSocket.live().length, 1, "one connection, and none is forgotten");
  register();
  assert.equal(heard.at(-1), "state registered");
  await nothingThrown();
});

test("a page that goes to sleep while it waits does not connect in its sleep", () => {
  registered().ends();
  sleep();
  fire(page, "online");
  clock.pass(60_000);
  assert.equal(FakeSocket.live().length, 0);
  wake();
  assert.equal(FakeSocket.live().length, 1);
});

for (const sign of ["resume", "visible", "pageshow"]) {
  test(`a page that is asleep is woken by ${sign} alone, because a browser may leave out the others`, () => {
    registered();
    sleep();
    if (sign === "resume") fire(doc, "resume");
    if (sign === "visible") hide(false);
    if (sign === "pageshow") fire(page, "pageshow", { persisted: true });
    assert.equal(FakeSocket.live().length, 1);
  });
}

test("the pageshow of a page that was never asleep asks nothing", () => {
  const socket = registered();
  fire(page, "pageshow", { persisted: false });
  assert.equal(socket.sent.length, 1);
});

test("a page that the browser freezes holds no connection", () => {
  const socket = registered();
  fire(doc, "freeze");
  assert.ok(socket.over);
  fire(doc, "resume");
  register();
  assert.equal(heard.at(-1), "state registered");
});

test("the user's return ends a wait at once", () => {
  registered().ends();
  hide(true);
  hide(false);
  assert.equal(FakeSocket.live().length, 1);
  clock.pass(60_000);
  assert.equal(heard.filter((said) => said === "state connecting").length > 0, true);
});

test("many signs of a return are one check, and its deadline is not put off", () => {
  const socket = registered();
  for (let n = 0; n < 50; n += 1) {
    fire(page, "online");
    hide(false);
    fire(doc, "resume");
    clock.pass(90);
  }
  assert.equal(socket.sent.length, 2, "a node closes with 1008 at twenty messages a second");
  clock.pass(500);
  assert.equal(heard[0], "state waiting", "no answer in 5 s");
});

test("a connection that answers its check stays", () => {
  const socket = registered();
  fire(page, "online");
  socket.says(answer);
  clock.pass(60_000);
  assert.deepEqual([FakeSocket.all.length, socket.over], [1, false]);
});

// A node without Redis

test("a client leaves a node that is degraded for 10 s, and only when another one has registered it", () => {
  const old = registered();
  old.says(status("degraded"));
  clock.pass(9_999);
  assert.equal(FakeSocket.all.length, 1);
  clock.pass(10_001); // a random part of ten seconds more: all pages are told at the same moment
  const other = last();
  assert.notEqual(other, old);
  other.opens();
  assert.equal(old.over, false, "somebody listens all the time");
  old.says(result("m1"));
  other.says(answer);
  assert.equal(old.over, true);
  other.says(result("m1"));
  other.says(result("m2"));
  assert.deepEqual(heard, ["push degraded", "result m1", "push restored", "state registered", "result m2"]);
  assert.equal(clock.timers.size, 0);
});

test("a client stays when its node has Redis again, before or while it tries another", () => {
  const old = registered();
  old.says(status("degraded"));
  old.says(status("restored"));
  clock.pass(60_000);
  assert.equal(FakeSocket.all.length, 1);
  old.says(status("degraded"));
  clock.pass(20_000);
  last().opens();
  old.says(status("restored"));
  assert.deepEqual(FakeSocket.live(), [old]);
  clock.pass(60_000);
  assert.equal(FakeSocket.all.length, 2);
  assert.equal(clock.timers.size, 0);
});

test("another node that is no better is left at once, and the next try comes later", () => {
  const [old, other] = seeking();
  other.opens();
  other.says(status("degraded"));
  assert.deepEqual(FakeSocket.live(), [old]);
  assert.deepEqual(heard, [], "which is no news");
  clock.pass(29_999);
  assert.equal(FakeSocket.all.length, 2);
  clock.pass(1);
  assert.equal(FakeSocket.all.length, 3);
});

for (const [how, fails] of Object.entries({
  "cannot be reached": (other) => other.ends(),
  "is silent": () => clock.pass(15_000),
  "refuses": (other) => {
    other.opens();
    other.says(refusal("not_authorized"));
  },
})) {
  test(`another node that ${how} costs nothing`, () => {
    const [old, other] = seeking();
    fails(other);
    assert.deepEqual(FakeSocket.live(), [old]);
    old.says(result("m1"));
    assert.deepEqual(heard, ["result m1"]);
    clock.pass(60_000);
    assert.ok(FakeSocket.all.length > 2, "it goes on trying");
  });
}

test("if the old connection is lost meanwhile, the new one is already on its way", () => {
  const [old, other] = seeking();
  other.opens();
  old.ends(1012);
  assert.deepEqual(FakeSocket.live(), [other]);
  assert.equal(clock.timers.size, 1, "its deadline");
  other.says(answer);
  assert.deepEqual(heard, ["state registering", "push restored", "state registered"]);
  other.ends();
  assert.equal(heard.at(-1), "state waiting", "it is a connection like any other now");
});

test("waits are short again when a connection is lost after many tries of other nodes", () => {
  const [old] = seeking();
  for (let n = 0; n < 5; n += 1) {
    last().ends();
    clock.pass(60_000);
  }
  last().ends();
  old.ends();
  const before = FakeSocket.all.length;
  clock.pass(500);
  assert.equal(FakeSocket.all.length, before + 1);
});

// What a page may do in a callback

for (const [where, trigger] of Object.entries({
  "state connecting": () => client.open(),
  "state registering": () => {
    client.open();
    last().opens();
  },
  "state registered": registered,
  "state waiting": () => registered().ends(),
  "result m1": () => registered().says(result("m1")),
  "push degraded": () => registered().says(status("degraded")),
  "push restored": () => {
    registered().says(status("degraded"));
    last().ends();
    clock.pass(500);
    register();
  },
})) {
  const [kind, value] = where.split(" ");

  test(`close() when told "${where}" is the end`, async () => {
    client = clientWith({
      [kind]: (said) => (said.messageId ?? said) === value && client.close(),
    });
    trigger();
    assert.deepEqual(FakeSocket.live(), []);
    assert.equal(clock.timers.size, 0);
    assert.equal(heard.at(-1) ?? "state closed", "state closed");
    await nothingThrown();
  });

  test(`an exception when told "${where}" is reported, and stops nothing`, () => {
    client = clientWith({
      [kind]: (said) => {
        if ((said.messageId ?? said) === value) throw new Error("the page's own");
      },
    });
    try {
      trigger();
    } catch (error) {
      assert.fail(`thrown through the client: ${error.stack}`);
    }
    assert.throws(() => clock.pass(0), /the page's own/);
    client.close();
    client.open();
    assert.equal(FakeSocket.live().length, 1);
  });
}

for (const [what, [mark, message]] of Object.entries({
  "a registration is sent": [">", answer],
  "its answer comes": ["<", answer],
  "a result comes": ["<", result("m1")],
})) {
  test(`close() when told of the frame, as ${what}, is the end`, async () => {
    const isIt = (text) => mark === ">" || text === JSON.stringify(message);
    client = clientWith({ frame: (told, text) => told === mark && isIt(text) && client.close() });
    client.open();
    const socket = last();
    socket.opens();
    socket.says(answer);
    socket.says(message);
    assert.ok(socket.over);
    assert.equal(clock.timers.size, 0);
    assert.equal(heard.at(-1), "state closed");
    await nothingThrown();
  });
}

test("a URL that is none is an error of open(), and open() may be called again", () => {
  globalThis.WebSocket = class {
    constructor() {
      throw new DOMException("no URL", "SyntaxError");
    }
  };
  assert.throws(() => client.open(), /no URL/);
  assert.equal(clock.timers.size, 0);
  globalThis.WebSocket = FakeSocket;
  client.open();
  assert.equal(FakeSocket.live().length, 1);
});

// Everything in every state

for (const [name, reach] of Object.entries(STATES)) {
  test(`close() while ${name} leaves nothing, and open() starts anew`, async () => {
    reach();
    client.close();
    assert.deepEqual(FakeSocket.live(), []);
    assert.equal(clock.timers.size, 0);
    const sockets = FakeSocket.all.length;
    sleep();
    wake();
    fire(page, "online");
    clock.pass(60_000);
    for (const socket of FakeSocket.all) socket.ends();
    assert.equal(FakeSocket.all.length, sockets, "a closed client hears nothing of the page");
    client.open();
    assert.equal(FakeSocket.live().length, 1);
    register();
    assert.equal(heard.at(-1), "state registered");
    await nothingThrown();
  });

  test(`sleep and return while ${name} leave one connection or none`, async () => {
    reach();
    const wanted = ["never opened", "rejected", "closed"].includes(name) ? 0 : 1;
    sleep();
    assert.deepEqual(FakeSocket.live(), []);
    assert.equal(clock.timers.size, 0);
    wake();
    assert.equal(FakeSocket.live().length, wanted);
    if (wanted) register();
    clock.pass(60_000);
    assert.equal(FakeSocket.live().length, wanted);
    await nothingThrown();
  });

  test(`losing every connection while ${name} is made good`, async () => {
    reach();
    for (const socket of FakeSocket.live()) socket.ends();
    clock.pass(20_000);
    const wanted = ["never opened", "rejected", "closed", "asleep", "asleep after waiting"].includes(name) ? 0 : 1;
    assert.equal(FakeSocket.live().length, wanted);
    await nothingThrown();
  });
}

// What must hold after any course of events.
function check({ open, asleep, degraded }, trail) {
  const live = FakeSocket.live();
  const where = `after ${trail.join(", ")}`;
  if (!open || asleep) {
    assert.equal(live.length, 0, `no connection ${where}`);
    assert.equal(clock.timers.size, 0, `no timer ${where}`);
    return;
  }
  assert.ok(live.length <= (degraded ? 2 : 1), `${live.length} connections ${where}`);
  const settled = live.some((socket) => socket.sent.length && socket.registered);
  assert.ok(settled || clock.timers.size, `nothing would ever happen again ${where}`);
  assert.ok(clock.timers.size <= live.length + 1, `a timer too many ${where}`);
}

function walk(seed) {
  const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647; // MINSTD
  Math.random = random;
  const pick = (list) => list[Math.floor(random() * list.length)];
  const now = { open: false, asleep: false, degraded: false };
  const any = () => (FakeSocket.all.length ? pick(FakeSocket.all.slice(-4)) : null);
  const says = (message) => () => {
    const socket = any();
    if (!socket?.isOpen || socket.over) return;
    if (message === answer) socket.registered = true;
    socket.says(message);
  };
  const steps = {
    open: () => client.open(),
    close: () => client.close(),
    opens: () => any()?.over || any()?.isOpen || last().over || last().opens(),
    answer: says(answer),
    degraded: says(status("degraded")),
    restored: says(status("restored")),
    result: says(result("m1")),
    denied: says(refusal("unknown_id")),
    lost: () => any()?.ends(),
    online: () => fire(page, "online"),
    hidden: () => hide(true),
    visible: () => hide(false),
    freeze: () => fire(doc, "freeze"),
    resume: () => fire(doc, "resume"),
    pagehide: () => fire(page, "pagehide", { persisted: true }),
    pageshow: () => fire(page, "pageshow", { persisted: now.asleep }),
    moment: () => clock.pass(300),
    while: () => clock.pass(6_000),
    long: () => clock.pass(40_000),
  };
  client = new ResultClient("ws://node/ws", "a", {
    state: (name) => (now.open = name !== "closed" && name !== "rejected"),
    push: (name) => (now.degraded = name === "degraded"),
  });
  const trail = [`seed ${seed}`];
  for (let n = 0; n < STEPS; n += 1) {
    const name = pick(Object.keys(steps));
    trail.push(name);
    if (name === "open" && !now.open) now.asleep = false;
    if (["pagehide", "freeze"].includes(name) && now.open) now.asleep = true;
    steps[name]();
    if (["pageshow", "resume", "visible"].includes(name)) now.asleep = false;
    check(now, trail);
  }
}

test("no course of events leaves a connection, a timer or a client behind", async () => {
  for (let seed = 1; seed <= SEEDS; seed += 1) {
    clock.timers.clear();
    FakeSocket.all = [];
    page = globalThis.window = new EventTarget();
    doc = globalThis.document = Object.assign(new EventTarget(), { hidden: false });
    walk(seed);
  }
  await nothingThrown();
});

test("the node gets the token, and a page that shows its frames does not", () => {
  const frames = [];
  client = clientWith({ frame: (mark, text) => frames.push(text) });
  client.token = "a.b.c";
  client.open();
  last().opens();
  assert.equal(last().sent[0].token, "a.b.c");
  client.token = "d.e.f"; // as for a page that waits longer than the first is valid
  last().ends();
  clock.pass(60_000);
  last().opens();
  assert.equal(last().sent[0].token, "d.e.f");
  assert.equal(frames.length, 2);
  for (const frame of frames) assert.equal(JSON.parse(frame).token, "***");
});

test("without a token there is none", () => {
  client = clientWith();
  client.open();
  last().opens();
  assert.ok(!("token" in last().sent[0]));
});
