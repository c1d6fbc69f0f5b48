// The chat page: it sends the conversation to /v1/chat/completions and shows the answer as it arrives.
// Text is only ever assigned as text, so nothing that a model or a person writes is interpreted as markup.
"use strict";

const STORED = "nanochat";
const SETTINGS = ["system", "temperature", "length"]; // their defaults are in the page
const element = (id) => document.getElementById(id);
const [chat, question, send, stop, settings] = ["chat", "question", "send", "stop", "settings"].map(element);

/** turns: [{role, pieces: [{kind, text}], note, failed}]; a piece of an answer is text, python or python_output. */
let state = { turns: [], ...Object.fromEntries(SETTINGS.map((name) => [name, element(name).value])) };
let running = null; // the AbortController of the answer that is being written

function textOf(turn) {
  return turn.pieces.map((piece) => piece.text).join("");
}

function save() {
  try {
    sessionStorage.setItem(STORED, JSON.stringify(state));
  } catch {
    // Without storage the chat is lost when the page is loaded again; it works otherwise.
  }
}

function restore() {
  try {
    const stored = JSON.parse(sessionStorage.getItem(STORED));
    if (stored && Array.isArray(stored.turns)) state = { ...state, ...stored };
  } catch {
    // Stored by another version, or no storage: start with an empty chat.
  }
}

function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

function show(turn) {
  const shown = make("div", `turn ${turn.role}`);
  for (const piece of turn.pieces) addPiece(shown, piece);
  if (turn.note) shown.append(make("div", turn.failed ? "note wrong" : "note", turn.note));
  chat.append(shown);
  return shown;
}

function addPiece(shown, { kind, text }) {
  const last = shown.lastChild;
  if (last && last.className === kind) last.textContent += text;
  else shown.append(make("span", kind, text));
}

function showAll() {
  chat.replaceChildren();
  state.turns.forEach(show);
  const last = state.turns.at(-1);
  if (last && last.role === "assistant" && !running) {
    const again = make("button", "again", "Regenerate");
    again.type = "button";
    again.addEventListener("click", regenerate);
    chat.lastChild.append(again);
  }
  chat.scrollTop = chat.scrollHeight;
}

function setRunning(controller) {
  running = controller;
  stop.hidden = !controller;
  send.hidden = Boolean(controller);
}

function headers() {
  const key = element("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

function requestBody() {
  const system = state.system.trim();
  const turns = state.turns.filter((turn) => !turn.failed).map((turn) => ({ role: turn.role, content: textOf(turn) }));
  return {
    messages: [...(system ? [{ role: "system", content: system }] : []), ...turns],
    temperature: Number(state.temperature),
    top_k: 50,
    max_tokens: Math.max(1, Math.trunc(Number(state.length)) || 1),
    stream: true,
  };
}

/** Yield the parsed events of a response of server-sent events. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    pending += value;
    const whole = pending.split("\n\n");
    pending = whole.pop();
    for (const event of whole) {
      const data = event.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function refusal(response) {
  const body = await response.json().catch(() => ({}));
  const error = new Error(body.error?.message ?? `the server answered ${response.status}`);
  error.code = body.error?.code;
  return error;
}

async function answer() {
  const turn = { role: "assistant", pieces: [], note: "", failed: false };
  const turns = state.turns; // another array once a new chat has begun
  const controller = new AbortController();
  setRunning(controller);
  showAll();
  const shown = show(turn);
  shown.classList.add("running");
  try {
    await receive(turn, shown, controller.signal);
  } catch (error) {
    explain(turn, error);
  }
  if (running === controller) setRunning(null);
  if (turn.pieces.length || turn.note) turns.push(turn);
  save();
  showAll();
  question.focus();
}

async function receive(turn, shown, signal) {
  const response = await request(signal);
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    const choice = event.choices[0];
    if (!choice) continue;
    if (choice.delta.content) {
      const piece = { kind: choice.delta.kind, text: choice.delta.content };
      turn.pieces.push(piece);
      const atEnd = chat.scrollHeight - chat.scrollTop - chat.clientHeight < 80;
      addPiece(shown, piece);
      if (atEnd) chat.scrollTop = chat.scrollHeight;
    }
    if (choice.finish_reason === "length") turn.note = "The answer reached its longest length.";
  }
}

/** Send the chat. If it does not fit the model's context, forget its oldest turns and say so. */
async function request(signal) {
  for (;;) {
    const body = JSON.stringify(requestBody());
    const response = await fetch("v1/chat/completions", { method: "POST", headers: headers(), body, signal });
    if (response.ok) return response;
    const error = await refusal(response);
    if (error.code !== "context_length_exceeded" || state.turns.length < 3) throw error;
    state.turns.splice(0, 2);
    state.turns[0].note = "Earlier messages no longer fit the model's context; it does not see them.";
  }
}

function explain(turn, error) {
  if (error.name === "AbortError") {
    turn.note = "Stopped.";
    return;
  }
  turn.note = error.message;
  turn.failed = true;
  if (error.code === "invalid_api_key") askForKey();
}

function ask(text) {
  const failed = state.turns.findIndex((turn) => turn.failed);
  if (failed >= 0) state.turns.splice(failed - 1, 2);
  state.turns.push({ role: "user", pieces: [{ kind: "text", text }], note: "", failed: false });
  save();
  answer();
}

function regenerate() {
  if (running) return;
  state.turns.pop();
  answer();
}

function askForKey() {
  element("key-label").hidden = false;
  settings.hidden = false;
  element("open-settings").setAttribute("aria-expanded", "true");
  element("key").focus();
}

function fitQuestion() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight + 2}px`;
}

async function describe() {
  const response = await fetch("info", { headers: headers() }).catch(() => null);
  if (response?.status === 401) return askForKey();
  if (!response?.ok) return;
  const info = await response.json();
  document.title = element("name").textContent = info.name;
  const facts = element("facts");
  const size = `${info.parameters.toLocaleString("en")} parameters, context ${info.context.toLocaleString("en")}`;
  facts.replaceChildren([size, ...info.scores].join(" · "));
  if (info.has_report) {
    const link = make("a", "", "report");
    link.href = "report";
    link.target = "_blank";
    link.rel = "noopener";
    facts.append(" · ", link);
  }
}

function connectSettings() {
  for (const name of SETTINGS) {
    const field = element(name);
    field.value = state[name];
    field.addEventListener("input", () => {
      state[name] = field.value;
      element("shown-temperature").textContent = state.temperature;
      save();
    });
  }
  element("shown-temperature").textContent = state.temperature;
  settings.addEventListener("submit", (event) => event.preventDefault());
  element("key").addEventListener("change", describe);
  element("open-settings").addEventListener("click", (event) => {
    settings.hidden = !settings.hidden;
    event.currentTarget.setAttribute("aria-expanded", String(!settings.hidden));
  });
}

function connectChat() {
  element("compose").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = question.value.trim();
    if (!text || running) return;
    question.value = "";
    fitQuestion();
    ask(text);
  });
  question.addEventListener("input", fitQuestion);
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      element("compose").requestSubmit();
    }
  });
  stop.addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
  });
  element("new-chat").addEventListener("click", () => {
    running?.abort();
    setRunning(null);
    state.turns = [];
    save();
    showAll();
    question.focus();
  });
}

restore();
connectSettings();
connectChat();
showAll();
describe();
