// A live panel on the trainer nodes. Fed by the messages of nodes/host_ui.py, and by GET /edgetune/runs for what was
// missed; there is no panel on a node until it has a run to show.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { nodeByPath } from "./lib/nodes.mjs";
import { Panel, PANEL_HEIGHT } from "./lib/panel.mjs";
import { Run } from "./lib/run.mjs";

const WIDGET = "training";
const GAP = 4; // that ComfyUI puts between widgets

/** States by workflow and node id: {run, promptId, node, isRunning, text, problem}. */
const states = new Map();
const panels = new WeakMap(); // by node

const key = ({ workflow, node }) => `${workflow} ${node}`;
const isOpen = ({ workflow }) => workflow === app.rootGraph.id;

/** The state that a message is about; a new one where another prompt runs. */
function stateOf(message) {
  const state = states.get(key(message));
  return state?.promptId === message.prompt_id ? state : newState(message);
}

function newState(message) {
  const { workflow, node, prompt_id: promptId } = message;
  const state = { workflow, node, promptId, run: new Run(), isRunning: true };
  states.set(key(message), state);
  return state;
}

function show(state) {
  const node = isOpen(state) ? nodeByPath(app.rootGraph, state.node) : null;
  if (!node?.comfyClass?.startsWith("EdgeTune_")) return;
  if (!panels.has(node)) {
    if (node.graph !== app.canvas.graph) return; // in a sub-graph that is closed: ComfyUI would draw the panel outside
    addPanel(node);
  }
  panels.get(node).show(state);
}

function showAll() {
  for (const state of states.values()) show(state);
}

function addPanel(node) {
  const panel = new Panel({
    onStop: () => stop(panel.state.node),
    onCancel: () => api.interrupt(panel.state.promptId),
  });
  const widget = node.addDOMWidget(WIDGET, "edgetune.training", panel.element, {
    serialize: false, // of the prompt
    getMinHeight: () => PANEL_HEIGHT,
    hideOnZoom: false,
  });
  widget.serialize = false; // of the workflow
  panels.set(node, panel);
  const before = node.size[1];
  node.setSize([node.size[0], Math.max(before, node.computeSize()[1])]);
  const grown = LiteGraph.vueNodesMode ? PANEL_HEIGHT + GAP : node.size[1] - before;

  // A workflow that is opened again has no panel, and its node no room for one.
  const onSerialize = node.onSerialize;
  node.onSerialize = function (saved) {
    saved.size[1] = Math.max(saved.size[1] - grown, Math.min(before, saved.size[1]));
    return onSerialize?.apply(this, arguments);
  };
  const onRemoved = node.onRemoved;
  node.onRemoved = function () {
    panel.close();
    panels.delete(node);
    return onRemoved?.apply(this, arguments);
  };
}

async function stop(node) {
  const answer = await api.fetchApi("/edgetune/stop", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ node }),
  });
  if (!answer.ok) throw new Error(`Stop and keep: ${await answer.text()}`);
}

/** Everything the server remembers: after a reload, or where messages were missed. */
async function catchUp() {
  const answer = await api.fetchApi("/edgetune/runs");
  if (!answer.ok) return;
  for (const { summary, is_running: isRunning, ...message } of await answer.json()) {
    const state = stateOf(message);
    state.run.take(message);
    if (!isRunning) Object.assign(state, { isRunning, text: summary ?? "Ended early" });
    show(state);
  }
}

const onStep = ({ detail }) => {
  const isFirst = detail.losses.length === detail.step - detail.first + 1; // a node may run twice in a prompt
  const state = isFirst ? newState(detail) : stateOf(detail);
  Object.assign(state, { isRunning: true, text: null });
  if (state.run.take(detail)) show(state);
  else catchUp();
};

const onStage = ({ detail }) => {
  const state = stateOf(detail);
  state.text = detail.text;
  show(state);
};

const onDone = ({ detail }) => {
  const state = stateOf(detail);
  Object.assign(state, { isRunning: false, text: detail.summary });
  show(state);
};

/** What ComfyUI says when a prompt does not come to its end. */
const ended = (text) => ({ detail }) => {
  for (const state of states.values()) {
    if (state.promptId !== detail.prompt_id || !state.isRunning) continue;
    Object.assign(state, { isRunning: false, text, problem: detail.exception_message });
    show(state);
  }
};

app.registerExtension({
  name: "EdgeTune.Training",

  init() {
    api.addEventListener("edgetune.step", onStep);
    api.addEventListener("edgetune.stage", onStage);
    api.addEventListener("edgetune.done", onDone);
    api.addEventListener("execution_interrupted", ended("Cancelled"));
    api.addEventListener("execution_error", ended("Failed"));
    api.addEventListener("reconnected", catchUp);
  },

  setup() {
    app.canvas.canvas.addEventListener("litegraph:set-graph", showAll); // a sub-graph is opened or closed
    return catchUp();
  },

  afterConfigureGraph: showAll,
});
