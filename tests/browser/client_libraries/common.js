// What every page here has: its parameters, and what it has seen, for the test to read.
"use strict";

const parameters = Object.fromEntries(new URLSearchParams(location.search));
const RECONNECT_DELAY = 100; // ms: a page in production takes longer, and varies it
const REGISTRATION = "/user/topic/registration";
const AUTHORIZATION = "/user/topic/authorization";

const seen = {
  connection: {}, // how the present connection came about
  beats: 0, // heart-beats that came from the node
  losses: 0, // connections that ended unasked, or never began
  registrations: [],
  results: [],
};
window.seen = seen;

// What the test calls; each page has its own.
window.openNextScreen = () => {}; // Web Flow's page subscribes to its results only here
window.leave = () => {};

function note(list, body) {
  const { messageId, ...said } = JSON.parse(body); // chosen by the publisher's library
  list.push(said);
}

// Takes what the libraries say of themselves.
function overhear(said) {
  if (String(said).startsWith("<<< PONG")) seen.beats += 1;
}

// What calls `connect` again, once, when the connection is lost.
function reconnecting(connect) {
  let over = false;
  return () => {
    if (over) return; // stompjs 2 calls back for an ERROR frame, and again for the close behind it
    over = true;
    seen.losses += 1;
    setTimeout(connect, RECONNECT_DELAY);
  };
}

function socketTo(gateway) {
  return new SockJS(gateway + "/websocket", null, { transports: [parameters.transport] });
}
