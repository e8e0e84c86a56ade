// What a trainer node shows of its run: a status line, the curve, memory against plan and budget, two buttons.
import { COLOURS, drawCurve } from "./curve.mjs";
import { rateText, sizeText, timeText } from "./run.mjs";

export const PANEL_HEIGHT = 214;

const STYLE = `
  :host { display: block; min-height: ${PANEL_HEIGHT}px; box-sizing: border-box; }
  .panel { height: 100%; min-height: ${PANEL_HEIGHT}px; box-sizing: border-box; padding: 6px 8px; gap: 5px;
    display: flex; flex-direction: column; overflow: hidden; border-radius: 6px; font: 11px/1.35 sans-serif;
    color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222); }
  .row { display: flex; justify-content: space-between; gap: 8px; white-space: nowrap; }
  .row > * { overflow: hidden; text-overflow: ellipsis; }
  .over .row:first-child { white-space: normal; }
  .legend { flex-wrap: wrap; row-gap: 2px; }
  canvas { flex: 1 1 0px; height: 0; min-height: 0; width: 100%; }
  .faint { opacity: 0.75; }
  .kind::before { content: ""; display: inline-block; width: 8px; height: 8px; margin-right: 4px; border-radius: 2px;
    background: var(--colour); }
  .kind + .kind { margin-left: 10px; }
  .bar { position: relative; height: 6px; border-radius: 3px; background: var(--border-color, #4e4e4e); }
  .bar i { position: absolute; left: 0; top: 0; bottom: 0; border-radius: 3px; background: #6aa86a; }
  .bar i.over { background: #d9534f; }
  .bar b { position: absolute; top: -3px; bottom: -3px; width: 2px; margin-left: -1px; }
  .planned { background: var(--input-text, #ddd); }
  .budget { background: #d9534f; }
  .problem { color: #e57373; white-space: normal; }
  button { flex: 1; padding: 4px; border: 1px solid var(--border-color, #4e4e4e); border-radius: 4px; cursor: pointer;
    font: inherit; color: inherit; background: transparent; }
  button:hover { border-color: currentColor; }
  button:disabled { opacity: 0.5; cursor: default; }
  [hidden] { display: none !important; }
`;
const PARTS = `
  <div class="panel">
    <div class="row"><span id="status"></span><span id="pace" class="faint"></span></div>
    <canvas></canvas>
    <div class="row legend">
      <span><span class="kind" id="bp"></span><span class="kind" id="zo"></span></span>
      <span id="memory" class="faint"></span>
    </div>
    <div class="bar" id="bar"><i></i><b class="planned"></b><b class="budget"></b></div>
    <div id="problem" class="problem"></div>
    <div class="row" id="buttons"><button id="stop">Stop and keep</button><button id="cancel">Cancel</button></div>
  </div>
`;

/** An element that draws runs. onStop and onCancel are async; what they throw is shown. */
export class Panel {
  run = null;
  #frame = 0;

  constructor({ onStop, onCancel }) {
    this.element = document.createElement("div");
    this.element.className = "edgetune-panel";
    this.root = this.element.attachShadow({ mode: "open" });
    this.root.innerHTML = `<style>${STYLE}</style>${PARTS}`;
    for (const kind of ["bp", "zo"]) this.#part(kind).style.setProperty("--colour", COLOURS[kind]);
    this.#part("stop").title = "End after the current step; the graph goes on with the result so far.";
    this.#part("cancel").title = "End at once, without a result.";
    this.#listen("stop", onStop);
    this.#listen("cancel", onCancel);
    this.observer = new ResizeObserver(() => this.redraw());
    this.observer.observe(this.root.querySelector("canvas"));
  }

  /** Shows this state: {run, isRunning, text, problem}; text stands in place of the step. */
  show(state) {
    this.state = state;
    this.redraw();
  }

  /** Draws with the next frame, once for however many changes there were. */
  redraw() {
    if (this.state) this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  close() {
    cancelAnimationFrame(this.#frame);
    this.observer.disconnect();
  }

  #part(id) {
    return this.root.getElementById(id);
  }

  #listen(id, action) {
    this.#part(id).addEventListener("click", async () => {
      this.#part(id).disabled = true;
      this.state.problem = null;
      try {
        await action();
      } catch (error) {
        this.state.problem = error.message;
      } finally {
        this.#part(id).disabled = false;
        this.redraw();
      }
    });
  }

  /** Only where it is another: the page is laid out again after each change. */
  #write(id, text) {
    const part = this.#part(id);
    if (part.textContent !== text) part.textContent = text;
  }

  #draw() {
    this.#frame = 0;
    const { run, isRunning, text, problem } = this.state;
    const last = run.last;
    const canvas = this.root.querySelector("canvas");
    drawCurve(canvas, run, getComputedStyle(canvas).color); // first: it reads sizes, which what follows may change
    this.#write("status", text || (last ? `Step ${last.step} of ${last.steps}` : "Starting"));
    this.#part("status").title = text ?? "";
    const pace = run.stepsPerSecond ? rateText(run.stepsPerSecond) : "";
    this.#write("pace", isRunning && pace ? `${pace} \u00b7 ${timeText(run.secondsLeft)} left` : "");
    this.root.querySelector(".panel").classList.toggle("over", !isRunning);
    this.#part("buttons").hidden = !isRunning;
    this.#write("problem", problem ?? "");
    for (const [kind, { smooth, steps }] of Object.entries(run.series)) {
      this.#part(kind).hidden = !steps.length;
      this.#write(kind, `${kind.toUpperCase()} ${smooth.at(-1)?.toFixed(4)} (${steps.length})`);
    }
    this.#drawMemory(last?.bytes, last?.planned_bytes, last?.budget_bytes);
  }

  #drawMemory(bytes, planned, budget) {
    this.#part("bar").hidden = !bytes || !(planned || budget);
    const sizes = [
      bytes ? `peak ${sizeText(bytes)}` : "",
      planned ? `plan ${sizeText(planned)}` : "",
      budget ? `budget ${sizeText(budget)}` : "",
    ];
    this.#write("memory", sizes.filter(Boolean).join(" \u00b7 "));
    const most = Math.max(bytes ?? 0, planned ?? 0, budget ?? 0) * 1.04;
    const place = (mark, value, property) => {
      mark.hidden = !value;
      mark.style[property] = `${(100 * (value ?? 0)) / most}%`;
    };
    const filled = this.root.querySelector("i");
    place(filled, bytes, "width");
    filled.classList.toggle("over", Boolean(budget) && bytes > budget);
    place(this.root.querySelector(".planned"), planned, "left");
    place(this.root.querySelector(".budget"), budget, "left");
  }
}
