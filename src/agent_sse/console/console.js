// The console page: follows one session's stream and answers its permission requests.
// What events carry reaches the page through textContent only, never as markup.

const PREFIX = document.querySelector('meta[name="agent-sse-prefix"]').content;
const STORE = "agent-sse-console";
const MAX_ROWS = 500;
const MAX_CALLS = 100;
const MAX_OUTCOMES = 5;
const MAX_SETTLED = 1000;
const MAX_DETAIL = 20_000; // characters kept of one event; 500 rows of 256 KiB each would be too much
const MAX_BACKOFF = 30_000; // milliseconds, as the others below
const STEADY = 10_000; // a connection that lasted this long starts the backoff anew
const SILENCE = 90_000; // a stream without even a heartbeat for this long is taken for dead
const SHIFT_GUARD = 500; // a click this soon after cards moved may have been meant for another card
const REQUEST_TIMEOUT = 15_000;

const ENDED = new Set(["completed", "failed", "denied", "cancelled"]);
const TONE = {
  completed: "good", approved: "good", failed: "bad", denied: "bad", cancelled: "bad", expired: "bad",
  waiting_permission: "wait", executing: "wait", high: "wait", critical: "bad",
};

const $ = (id) => document.getElementById(id);

// ---- Text ----------------------------------------------------------------------------------------------------------

// Bidirectional and invisible characters could make a request read as something else: they are shown by number.
const UNSEEN = new RegExp(
  "[\\p{Cc}\\p{Cf}\\p{Cs}\\p{Co}\\p{Cn}\\p{Zl}\\p{Zp}" +
  "\\u034f\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180d\\u180f\\u2800\\u3164\\ufe00-\\ufe0e\\uffa0\\u{e0100}-\\u{e01ef}]", "gu");

function visible(text) {
  return text.replace(UNSEEN, (char) => (char === "\n" ? char : `\\u{${char.codePointAt(0).toString(16)}}`));
}

function textOf(value) {
  if (value === undefined || value === null) return "";
  return visible(typeof value === "string" ? value : JSON.stringify(value));
}

function pretty(value) {
  return visible(JSON.stringify(value, null, 2) ?? "");
}

function cut(text, limit) {
  return text.length > limit ? `${text.slice(0, limit)}… (${text.length - limit} more characters)` : text;
}

// A whole number beyond 2^53 would be shown rounded, and approved as something else: keep its digits where the browser can.
function exact(_key, value, context) {
  const rounded = typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value);
  return rounded && context?.source && JSON.rawJSON ? JSON.rawJSON(context.source) : value;
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function clock(value) {
  const date = typeof value === "number" ? new Date(value * 1000) : new Date(value ?? Date.now());
  return Number.isNaN(date.getTime()) ? textOf(value) : date.toLocaleTimeString();
}

function element(name, text = "", className = "") {
  const node = document.createElement(name);
  node.textContent = text;
  if (className) node.className = className;
  return node;
}

function badge(text, label) {
  const node = element("span", cut(textOf(text), 60), `badge ${Object.hasOwn(TONE, text) ? TONE[text] : ""}`);
  if (label) node.title = label;
  return node;
}

function say(node, text) {
  if (node.textContent !== text) node.textContent = text; // an unchanged live region must not be read out again
  node.hidden = text === "";
}

// ---- Timeline ------------------------------------------------------------------------------------------------------

const timeline = {
  waiting: [],
  total: 0,

  add(type, summary, event, time) {
    this.total += 1;
    this.waiting.push({ type, summary: cut(summary, 300), detail: cut(pretty(event), MAX_DETAIL), time: clock(time) });
    if (this.waiting.length > MAX_ROWS) this.waiting.shift(); // a hidden tab draws nothing, for hours
    if (this.waiting.length === 1) requestAnimationFrame(() => this.draw());
  },

  draw() {
    const list = $("events");
    if (this.waiting.length === 0) return;
    list.prepend(...this.waiting.reverse().map((entry) => this.row(entry)));
    this.waiting = [];
    while (list.childElementCount > MAX_ROWS) list.lastElementChild.remove();
    $("no-events").hidden = true;
    const shown = list.childElementCount;
    $("event-count").textContent = this.total > shown ? `last ${shown} of ${this.total}` : `${shown}`;
  },

  clear() {
    this.waiting = [];
    this.total = 0;
    $("events").replaceChildren();
    $("event-count").textContent = "";
    $("no-events").hidden = false;
  },

  row({ type, summary, detail, time }) {
    const row = element("li");
    const details = element("details");
    const head = element("summary");
    head.append(element("time", time), element("span", type, "kind"), element("span", summary));
    details.append(head);
    details.addEventListener("toggle", () => details.append(element("pre", detail)), { once: true });
    row.append(details);
    return row;
  },
};

// ---- Tool calls ----------------------------------------------------------------------------------------------------

const calls = {
  byId: new Map(),

  status(data) {
    const details = isObject(data.details) ? data.details : {};
    const call = this.open(data);
    call.status = data.status;
    call.risk = details.risk_level ?? call.risk;
    call.parameters = details.parameters ?? call.parameters;
    call.parent = details.parent_tool_call_id ?? call.parent;
    call.progress = isObject(details.progress) ? details.progress : undefined;
    if (!ENDED.has(data.status)) call.result = undefined;
    this.draw(call);
  },

  result(data) {
    const call = this.open(data);
    call.status ??= data.success ? "completed" : "failed";
    call.result = data;
    this.draw(call);
  },

  clearResult(id) {
    for (const [key, call] of this.byId) {
      if (call.result === undefined || (id !== null && id !== undefined && key !== id)) continue;
      call.result = undefined;
      this.draw(call);
    }
  },

  open(data) {
    const id = data.tool_call_id ?? data.tool_name;
    let call = this.byId.get(id);
    if (call === undefined) {
      call = { node: element("article"), tool: data.tool_name };
      this.byId.set(id, call);
      $("calls").prepend(call.node);
      $("no-calls").hidden = true;
      this.bound();
    }
    return call;
  },

  bound() {
    if (this.byId.size <= MAX_CALLS) return;
    const old = [...this.byId].find(([, call]) => ENDED.has(call.status)) ?? [...this.byId][0];
    old[1].node.remove();
    this.byId.delete(old[0]);
  },

  clear() {
    this.byId.clear();
    $("calls").replaceChildren();
    $("no-calls").hidden = false;
  },

  draw(call) {
    const title = element("div", "", "title");
    title.append(element("h3", cut(textOf(call.tool), 200)), badge(call.status, "status"));
    if (call.risk !== undefined) title.append(badge(call.risk, "risk level"));
    const parts = [title];
    if (call.parent !== undefined) parts.push(element("p", `part of ${cut(textOf(call.parent), 200)}`, "muted"));
    if (call.parameters !== undefined) parts.push(element("p", cut(textOf(call.parameters), 300), "muted"));
    if (call.progress !== undefined && !ENDED.has(call.status)) parts.push(...this.progress(call.progress));
    if (call.result !== undefined) parts.push(...this.outcome(call.result));
    call.node.replaceChildren(...parts);
  },

  progress({ progress, total, message }) {
    const parts = [];
    if (Number.isFinite(progress)) {
      const bar = element("progress");
      bar.setAttribute("aria-label", "progress");
      if (Number.isFinite(total) && total > 0) {
        bar.max = total;
        bar.value = progress;
      }
      parts.push(bar);
    }
    const count = [progress, total].filter((part) => part !== undefined && part !== null).map(textOf).join(" of ");
    const text = [count, cut(textOf(message), 300)].filter(Boolean).join(" · ");
    if (text) parts.push(element("p", text, "muted"));
    return parts;
  },

  outcome(data) {
    const parts = [];
    const took = Number.isFinite(data.duration_ms) ? ` after ${Math.round(data.duration_ms)} ms` : "";
    if (data.error) parts.push(element("p", `${cut(textOf(data.error), 1000)}${took}`, "bad"));
    if (data.result !== undefined && data.result !== null) {
      const details = element("details");
      details.append(element("summary", `Result${data.error ? "" : took}`), element("pre", cut(pretty(data.result), MAX_DETAIL)));
      parts.push(details);
    }
    return parts;
  },
};

// ---- Permission requests -------------------------------------------------------------------------------------------

const permissions = {
  cards: new Map(),
  settled: new Set(), // a repeat that crossed the clearing must not bring its card back
  shiftedAt: -Infinity,

  /** Show a request; false when it is a repeat of one that is shown or settled already. */
  show(data) {
    const id = data.request_id;
    if (this.cards.has(id) || this.settled.has(id)) return false;
    const card = this.build(data);
    this.cards.set(id, card);
    $("permissions").append(card.node); // at the end: what is being read does not move
    this.count();
    $("announcer").textContent = `Permission requested: ${card.tool}, risk ${textOf(data.risk_level)}`;
    return true;
  },

  build(data) {
    const node = element("article", "", "permission");
    const tool = cut(textOf(data.tool_name), 200);
    const title = element("div", "", "title");
    const heading = element("h3", tool);
    title.append(heading, badge(data.risk_level, "risk level"));
    node.append(title);
    if (data.message) node.append(element("p", textOf(data.message)));
    const parameters = element("pre", pretty(data.parameters ?? {})); // whole: nobody approves what was cut off
    parameters.tabIndex = 0;
    parameters.setAttribute("aria-label", `Parameters of ${tool}`);
    const expiry = element("p", "", "muted");
    const label = element("label", "Reason (optional)");
    const reason = element("input");
    reason.maxLength = 2000;
    reason.autocomplete = "off";
    label.append(reason);
    const approve = element("button", "Approve");
    const deny = element("button", "Deny");
    const buttons = element("div", "", "buttons");
    buttons.append(approve, deny);
    const note = element("p");
    note.setAttribute("role", "status");
    note.hidden = true;
    node.append(parameters, expiry, label, buttons, note);
    node.setAttribute("role", "group");
    node.setAttribute("aria-label", `Permission request: ${tool}`);
    const card = { id: data.request_id, tool, node, expiry, reason, note, controls: [approve, deny, reason], deadline: Date.parse(data.expires_at) };
    for (const [button, approved] of [[approve, true], [deny, false]]) {
      button.type = "button";
      button.setAttribute("aria-label", `${button.textContent} ${tool}`);
      button.addEventListener("click", () => this.answer(card, approved));
    }
    this.tick(card);
    return card;
  },

  async answer(card, approved) {
    if (performance.now() - this.shiftedAt < SHIFT_GUARD) {
      say(card.note, "The list has just moved: check the request and press again.");
      return;
    }
    const busy = (on) => card.controls.forEach((control) => { control.disabled = on; });
    busy(true);
    say(card.note, "Sending…");
    const body = { approved, reason: card.reason.value, request_id: card.id };
    const reply = await stream.post("permission-response", body);
    if (reply === null) {
      busy(false);
      say(card.note, "");
      return;
    }
    const { status, body: answer, message } = reply;
    if (status === 200) {
      const already = answer.data?.already_resolved ? " (it was answered so before)" : "";
      say(card.note, `${approved ? "Approved" : "Denied"}${already}.`);
      this.outcome(`Your answer to ${card.tool}: ${approved ? "approved" : "denied"}${already}`);
    } else if (status === 409) {
      this.refuse(card, `${card.tool}: already answered${this.winner(answer)}. ${message}`);
    } else if (status === 404 || status === 410) {
      this.refuse(card, `${card.tool}: ${message}`);
    } else {
      busy(false);
      say(card.note, `Not sent: ${message}`);
    }
  },

  winner(answer) {
    const data = isObject(answer.data) ? answer.data : {};
    const what = textOf(data.outcome ?? (typeof data.approved === "boolean" ? (data.approved ? "approved" : "denied") : ""));
    const who = data.resolved_by ? ` by ${textOf(data.resolved_by)}` : "";
    return `${what && ` (${what})`}${who}`;
  },

  refuse(card, text) {
    this.outcome(text);
    this.remove(card.id);
  },

  /** Follow `permission_cleared`; without an id every card goes (protocol: a snapshot with nothing to decide). */
  clear(data) {
    if (data.request_id === null || data.request_id === undefined) {
      this.reset();
      return;
    }
    this.settled.add(data.request_id);
    if (this.settled.size > MAX_SETTLED) this.settled.delete(this.settled.values().next().value);
    this.remove(data.request_id);
    const who = data.resolved_by ? ` by ${textOf(data.resolved_by)}` : "";
    const why = data.reason ? `: ${cut(textOf(data.reason), 300)}` : "";
    this.outcome(`${textOf(data.tool_name)} ${textOf(data.outcome)}${who}${why}`);
  },

  remove(id) {
    const card = this.cards.get(id);
    if (card === undefined) return;
    const focused = card.node.contains(document.activeElement);
    if (card.node.nextElementSibling !== null) this.shiftedAt = performance.now();
    card.node.remove();
    this.cards.delete(id);
    this.count();
    if (focused) $("permissions-title").focus();
  },

  reset() {
    for (const id of [...this.cards.keys()]) this.remove(id);
    this.settled.clear(); // after a lost history a settled request may be open again
  },

  count() {
    const open = this.cards.size;
    $("no-permissions").hidden = open > 0;
    document.title = open > 0 ? `(${open}) agent-sse console` : "agent-sse console";
  },

  outcome(text) {
    const list = $("outcomes");
    list.append(element("li", `${clock()} ${text}`));
    while (list.childElementCount > MAX_OUTCOMES) list.firstElementChild.remove();
  },

  tick(card) {
    if (Number.isNaN(card.deadline)) return;
    const left = Math.round((card.deadline - Date.now()) / 1000);
    card.expiry.textContent = left > 0 ? `Expires in ${left} s, by this computer's clock` : "Expires now, by this computer's clock";
  },
};

// ---- The stream ----------------------------------------------------------------------------------------------------

const stream = {
  session: "", token: "", source: null, lastId: "", attempts: 0, timer: 0, openedAt: 0, heardAt: 0, heartbeatAt: 0,
  turn: 0, // rises with every start and stop: what an earlier turn still awaits is void

  start(session, token) {
    this.stop();
    if (session !== this.session) {
      this.lastId = "";
      timeline.clear();
      calls.clear();
      permissions.reset();
      $("outcomes").replaceChildren();
    }
    Object.assign(this, { session, token, attempts: 0, heartbeatAt: 0 });
    sessionStorage.setItem(STORE, JSON.stringify({ session, token }));
    $("connect").hidden = true;
    $("main").hidden = false;
    say($("problem"), "");
    this.connect();
  },

  stop() {
    this.turn += 1;
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  },

  halt(message, { forget = false } = {}) {
    this.stop();
    if (forget) sessionStorage.removeItem(STORE);
    show("stopped", "Stopped");
    say($("problem"), message);
    $("connect").hidden = !forget;
    $("reconnect").hidden = forget;
    $("session").value = this.session;
  },

  url(endpoint) {
    return `${PREFIX}/${endpoint}/${encodeURIComponent(this.session)}`;
  },

  /** POST with the bearer token. Null when the page has turned to something else meanwhile; status 0 when unreachable. */
  async post(endpoint, body) {
    const turn = this.session + this.token;
    const headers = { Authorization: `Bearer ${this.token}` };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let reply;
    try {
      const response = await fetch(this.url(endpoint), {
        method: "POST", headers, body: JSON.stringify(body), cache: "no-store", credentials: "omit",
        signal: AbortSignal.timeout(REQUEST_TIMEOUT),
      });
      const answer = await response.json().catch(() => ({}));
      const retryAfter = Number(response.headers.get("Retry-After")) || 0;
      reply = { status: response.status, body: isObject(answer) ? answer : {}, retryAfter };
    } catch {
      reply = { status: 0, body: {}, retryAfter: 0 };
    }
    if (turn !== this.session + this.token) return null;
    reply.message = textOf(reply.body.message) || (reply.status ? `the server answered ${reply.status}` : "the server cannot be reached");
    return reply;
  },

  async connect() {
    const turn = ++this.turn;
    show("wait", "Connecting…");
    const reply = await this.post("ticket"); // a ticket opens one stream, so every attempt needs its own
    if (reply === null || turn !== this.turn) return;
    const { status, message } = reply;
    const ticket = reply.body.data?.token;
    if (status === 401 || status === 403) {
      this.halt(`Not allowed (${status}): ${message}`, { forget: true });
    } else if (status >= 400 && status < 500 && status !== 408 && status !== 429) {
      this.halt(`Refused (${status}): ${message}`, { forget: true });
    } else if (typeof ticket !== "string") {
      this.later(message, reply.retryAfter * 1000);
    } else {
      this.open(ticket, turn);
    }
  },

  open(ticket, turn) {
    const query = new URLSearchParams({ token: ticket });
    if (this.lastId) query.set("last_event_id", this.lastId);
    const source = new EventSource(`${this.url("events")}?${query}`);
    this.source = source;
    this.heardAt = Date.now();
    this.openedAt = 0;
    source.onopen = () => {
      this.openedAt = this.heardAt = Date.now();
      show("open", `Connected to ${this.session}`);
      say($("problem"), "");
    };
    source.onmessage = (event) => {
      if (turn === this.turn) this.receive(event);
    };
    source.onerror = () => {
      if (turn === this.turn) this.later("the connection was lost");
    };
  },

  later(why, atLeast = 0) {
    if (this.openedAt && Date.now() - this.openedAt > STEADY) this.attempts = 0;
    this.openedAt = 0;
    const backoff = Math.min(MAX_BACKOFF, 1000 * 2 ** this.attempts);
    const delay = Math.max(atLeast, backoff) * (0.75 + Math.random() / 2);
    this.attempts += 1;
    this.stop();
    show("wait", `Reconnecting in ${Math.ceil(delay / 1000)} s: ${why}`);
    this.timer = setTimeout(() => this.connect(), delay);
  },

  receive(message) {
    this.heardAt = Date.now();
    if (message.lastEventId) this.lastId = message.lastEventId;
    let event;
    try {
      event = JSON.parse(message.data, exact);
    } catch {
      timeline.add("unreadable", visible(message.data.slice(0, 300)), {});
      return;
    }
    if (isObject(event)) handle(event);
  },
};

// ---- Events --------------------------------------------------------------------------------------------------------

const join = (...parts) => parts.map(textOf).filter(Boolean).join(" · ");

/** What each type of event does; it returns the row's text, or undefined for no row. */
const HANDLERS = {
  tool_status(data) {
    calls.status(data);
    const progress = isObject(data.details) && isObject(data.details.progress) ? data.details.progress : {};
    return join(data.tool_name, data.status, progress.message);
  },
  permission_request(data) {
    return permissions.show(data) ? join(data.tool_name, data.risk_level, data.parameters) : undefined;
  },
  permission_response_result(data) {
    return join(data.approved ? "approved" : "denied", data.reason);
  },
  permission_cleared(data) {
    permissions.clear(data);
    return join(data.tool_name, data.outcome === "none" ? "nothing to decide" : data.outcome, data.resolved_by, data.reason);
  },
  tool_result(data) {
    calls.result(data);
    return join(data.tool_name, data.success ? "success" : "no success", data.error, data.result);
  },
  result_cleared(data) {
    calls.clearResult(data.tool_call_id);
    return join(data.tool_call_id);
  },
  stream_reset(data) {
    permissions.reset();
    calls.clear();
    permissions.outcome("The history has a gap: what is shown starts anew");
    return join(data.reason);
  },
  heartbeat() {
    stream.heartbeatAt = Date.now();
    showHeartbeat();
    return undefined;
  },
  error(_data, event) {
    if (event.code === "session_closed") {
      permissions.reset(); // its requests went with it
      stream.halt("The session was closed.");
    } else {
      say($("problem"), join(event.message, event.code));
    }
    return join(event.code, event.message);
  },
};

function handle(event) {
  const data = isObject(event.data) ? event.data : {};
  const known = Object.hasOwn(HANDLERS, event.type);
  const summary = known ? HANDLERS[event.type](data, event) : textOf(event.data);
  if (summary !== undefined) timeline.add(cut(textOf(event.type), 60), summary, event, data.timestamp);
}

// ---- The page ------------------------------------------------------------------------------------------------------

function show(state, text) {
  $("dot").dataset.state = state;
  $("status").textContent = visible(text);
  $("disconnect").hidden = state === "idle" || state === "stopped";
  $("reconnect").hidden = state !== "stopped";
}

function showHeartbeat() {
  const ago = Math.round((Date.now() - stream.heartbeatAt) / 1000);
  $("heartbeat").textContent = stream.heartbeatAt ? `Last heartbeat ${ago < 2 ? "now" : `${ago} s ago`}` : "";
}

function askForm(session = "") {
  show("idle", "Not connected");
  $("session").value = session;
  $("token").value = "";
  $("connect").hidden = false;
  (session ? $("token") : $("session")).focus();
}

/** Take session and token from the fragment, the token out of the address bar, or from what this tab keeps. */
function begin() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  const session = fragment.get("session") ?? "";
  const token = fragment.get("token") ?? "";
  if (token) {
    const rest = session ? `#${new URLSearchParams({ session })}` : "";
    history.replaceState(null, "", location.pathname + location.search + rest);
  }
  let kept = {};
  try {
    kept = JSON.parse(sessionStorage.getItem(STORE)) ?? {};
  } catch {
    sessionStorage.removeItem(STORE);
  }
  if (session && token) stream.start(session, token);
  else if (kept.token && (!session || session === kept.session)) stream.start(kept.session, kept.token);
  else askForm(session);
}

$("connect").addEventListener("submit", (event) => {
  event.preventDefault();
  const session = $("session").value.trim();
  const token = $("token").value.trim();
  $("token").value = "";
  if (session && token) stream.start(session, token);
});
$("disconnect").addEventListener("click", () => {
  stream.stop();
  sessionStorage.removeItem(STORE);
  askForm(stream.session);
});
$("reconnect").addEventListener("click", () => stream.start(stream.session, stream.token));
addEventListener("hashchange", () => {
  if (new URLSearchParams(location.hash.slice(1)).has("token")) begin();
});
addEventListener("online", () => {
  if ($("dot").dataset.state === "wait" && stream.source === null) {
    clearTimeout(stream.timer);
    stream.connect();
  }
});
setInterval(() => {
  showHeartbeat();
  for (const card of permissions.cards.values()) permissions.tick(card);
  if (stream.source !== null && Date.now() - stream.heardAt > SILENCE) stream.later("no heartbeat came");
}, 1000);

begin();
