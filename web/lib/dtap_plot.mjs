// The schedule as two drawings side by side: p over t for some steps, and p over the whole run. Handles change t_mid
// and k; elsewhere on the right drawing, dragging chooses the step whose curve is drawn bold on the left.
import { bpName, draggedK, expectedZoSteps, isConstant, isDynamic, LABELS } from "./schedule.mjs";
import { markedSteps, midpoint, zoProbability } from "./schedule.mjs";

export const PLOT_HEIGHT = 230;
export const PLOT_WIDTH = 440; // below it the words under the drawings do not fit
const STEP_COLOURS = ["#7a86e8", "#35a9b5", "#5ec962", "#b8de29", "#fde725"];
const BP_TO_ZO = [[240, 163, 94], [236, 232, 230], [63, 111, 181]]; // p = 0, 1/2, 1
export const MARGIN = { left: 30, top: 10, bottom: 32, between: 46, right: 12 };
const GRAB = 11; // pixels around a handle
const REACH = 4; // the handle of k is where k (t - t_mid) is this, so p = 98%
const NEAREST = 14; // pixels that it keeps from the handle of t_mid, so that either can be grabbed
const CELLS = [100, 60]; // of the right drawing

const STYLE = `
  :host { display: block; min-height: ${PLOT_HEIGHT}px; }
  .plot { height: 100%; min-height: ${PLOT_HEIGHT}px; box-sizing: border-box; padding: 6px 8px; display: flex;
    flex-direction: column; border-radius: 6px; font: 11px/1.4 sans-serif; color: var(--input-text, #ddd);
    background: var(--comfy-input-bg, #222); }
  canvas { flex: 1; min-height: 0; width: 100%; touch-action: none; }
  b, span { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
  span { opacity: 0.75; }
`;

/** An element that draws schedules {strategy, steps, k, tMid, tMax}. onChange takes {tMid} or {k}, unrounded. */
export class DTAPPlot {
  #frame = 0;
  #dragged = null;
  #step = null; // chosen on the right drawing; halfway while null
  #pointed = null; // {step, t} under the pointer

  constructor(onChange) {
    this.onChange = onChange;
    this.element = document.createElement("div");
    this.element.className = "edgetune-dtap";
    const root = this.element.attachShadow({ mode: "open" });
    root.innerHTML = `<style>${STYLE}</style><div class="plot"><b></b><canvas></canvas><span></span></div>`;
    [this.title, this.canvas, this.note] = ["b", "canvas", "span"].map((name) => root.querySelector(name));
    const on = (type, action) => this.canvas.addEventListener(type, (event) => action(this.#place(event), event));
    on("pointerdown", (place, event) => this.#grab(place, event));
    on("pointermove", (place) => this.#move(place));
    on("pointerup", () => this.#release());
    on("pointercancel", () => this.#release());
    on("pointerleave", () => this.#point(null));
    this.observer = new ResizeObserver(() => this.redraw());
    this.observer.observe(this.canvas);
  }

  show(schedule) {
    this.schedule = schedule;
    if (this.#step > schedule.steps) this.#step = null;
    this.redraw();
  }

  /** Draws with the next frame, once for however many changes there were. */
  redraw() {
    if (this.schedule) this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  close() {
    cancelAnimationFrame(this.#frame);
    this.observer.disconnect();
  }

  /** Where things are, in pixels of the canvas as it is laid out. */
  get layout() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const side = (width - MARGIN.left - MARGIN.between - MARGIN.right) / 2;
    const [top, bottom] = [MARGIN.top, height - MARGIN.bottom];
    const { steps, tMax, tMid } = this.schedule;
    const curves = { left: MARGIN.left, right: MARGIN.left + side, top, bottom };
    const run = { left: width - MARGIN.right - side, right: width - MARGIN.right, top, bottom };
    const along = (value, from, to) => from + value * (to - from);
    const x = (t) => along(t / tMax, curves.left, curves.right);
    const y = (p) => along(p, curves.bottom, curves.top);
    const runX = (step) => along(step / steps, run.left, run.right);
    const runY = (t) => along(t / tMax, run.bottom, run.top);
    return { curves, run, x, y, runX, runY, handles: this.#handles(x, y, runX, runY, tMid) };
  }

  #handles(x, y, runX, runY, tMid) {
    const { strategy, steps, tMax, k } = this.schedule;
    if (isConstant(strategy)) return [];
    const middle = { name: "tMid", x: x(tMid), y: y(0.5) };
    const unit = x(1) - x(0);
    const slope = strategy === "reversed" ? -k : k;
    const direction = x(tMid) + NEAREST < x(tMax) ? 1 : -1; // at the right edge the handle of k is on the other side
    const distance = Math.max(NEAREST, (REACH / Math.max(Math.abs(k), 1e-6)) * unit);
    const edge = direction > 0 ? x(tMax) : x(0);
    const at = direction > 0 ? Math.min(edge, middle.x + distance) : Math.max(edge, middle.x - distance);
    const p = 0.5 * (1 + Math.tanh((0.5 * slope * (at - middle.x)) / unit));
    const handles = [middle, { name: "k", x: at, y: y(p) }];
    if (isDynamic(strategy)) handles.push({ name: "tMidOfRun", x: runX(steps / 2), y: runY(tMid) });
    return handles;
  }

  /** The pointer in pixels of the canvas: the page may show it larger or smaller than it is laid out. */
  #place(event) {
    const frame = this.canvas.getBoundingClientRect();
    const scale = this.canvas.clientWidth / frame.width;
    return { x: (event.clientX - frame.left) * scale, y: (event.clientY - frame.top) * scale };
  }

  #grab(place, event) {
    if (!this.schedule || event.button !== 0) return;
    event.preventDefault();
    event.stopPropagation();
    const { handles, run } = this.layout;
    const reach = (handle) => Math.hypot(handle.x - place.x, handle.y - place.y);
    const nearest = handles.filter((handle) => reach(handle) < GRAB).sort((a, b) => reach(a) - reach(b))[0];
    const isOnRun = place.x >= run.left && place.x <= run.right && place.y >= run.top && place.y <= run.bottom;
    this.#dragged = nearest ? { ...nearest, k: this.schedule.k, from: place } : isOnRun ? { name: "step" } : null;
    if (this.#dragged) this.canvas.setPointerCapture(event.pointerId);
    this.#move(place);
  }

  #release() {
    this.#dragged = null;
  }

  #move(place) {
    if (!this.schedule) return;
    const { steps, tMax, tMid } = this.schedule;
    const { curves, run, x } = this.layout;
    const share = (value, from, to) => Math.min(1, Math.max(0, (value - from) / (to - from)));
    const step = Math.max(1, Math.round(share(place.x, run.left, run.right) * steps));
    const isOnRun = place.x > (curves.right + run.left) / 2;
    const t = isOnRun ? share(place.y, run.bottom, run.top) : share(place.x, curves.left, curves.right);
    const { name, k, from } = this.#dragged ?? {};
    if (name === "step") this.#step = step;
    if (name === "tMid") this.onChange({ tMid: share(place.x, curves.left, curves.right) * tMax });
    if (name === "tMidOfRun") this.onChange({ tMid: share(place.y, run.bottom, run.top) * tMax });
    if (name === "k") this.onChange({ k: draggedK(k, Math.abs(from.x - x(tMid)), Math.abs(place.x - x(tMid))) });
    this.#point({ step: isOnRun ? step : this.#shownStep, t: Math.round(t * tMax) });
  }

  #point(pointed) {
    this.#pointed = pointed;
    this.redraw();
  }

  get #shownStep() {
    return this.#step ?? Math.max(1, Math.round(this.schedule.steps / 2));
  }

  #draw() {
    this.#frame = 0;
    const { strategy, steps, tMid } = this.schedule;
    const zo = Math.round(expectedZoSteps(strategy, this.schedule));
    this.title.textContent = `${LABELS[strategy]}: ${steps - zo} ${bpName(strategy)} and ${zo} ZO-high steps expected`;
    const { step, t } = this.#pointed ?? { step: this.#shownStep, t: tMid };
    const p = zoProbability(strategy, step, t, this.schedule);
    this.note.textContent = `Step ${step}, timestep ${t}: ZO-high in ${(100 * p).toFixed(1)}%. Drag the dots.`;
    this.note.hidden = isConstant(strategy);
    const scale = window.devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    this.ink = getComputedStyle(this.canvas).color;
    const layout = this.layout;
    this.#drawRun(pen, layout);
    this.#drawCurves(pen, layout);
    this.#drawAxes(pen, layout);
    for (const handle of layout.handles) drawDot(pen, handle.x, handle.y, 5.5, "#fff");
  }

  #drawCurves(pen, { curves, x, y }) {
    const { strategy, steps, tMax } = this.schedule;
    const stroke = (step, colour, width) => {
      pen.strokeStyle = colour;
      pen.lineWidth = width;
      pen.beginPath();
      for (let i = 0; i <= 200; i++) {
        const t = (i / 200) * tMax;
        pen.lineTo(x(t), y(zoProbability(strategy, step, t, this.schedule)));
      }
      pen.stroke();
    };
    pen.save();
    pen.beginPath();
    pen.rect(curves.left, curves.top - 2, curves.right - curves.left, curves.bottom - curves.top + 4);
    pen.clip();
    for (const step of markedSteps(strategy, steps)) stroke(step, stepColour(step / steps), 1.3);
    stroke(this.#shownStep, this.ink, 2.4);
    pen.restore();
  }

  #drawRun(pen, { run, runX, runY }) {
    const { strategy, steps, tMax } = this.schedule;
    const [columns, rows] = CELLS;
    const cells = new ImageData(columns, rows);
    for (let i = 0; i < columns * rows; i++) {
      const step = (((i % columns) + 0.5) / columns) * steps;
      const t = (1 - (Math.floor(i / columns) + 0.5) / rows) * tMax;
      cells.data.set(mixed(zoProbability(strategy, step, t, this.schedule)), 4 * i);
    }
    const small = new OffscreenCanvas(columns, rows);
    small.getContext("2d").putImageData(cells, 0, 0);
    pen.drawImage(small, run.left, run.top, run.right - run.left, run.bottom - run.top);
    if (isConstant(strategy)) return;
    pen.save();
    pen.beginPath();
    pen.rect(run.left, run.top, run.right - run.left, run.bottom - run.top);
    pen.clip();
    pen.strokeStyle = "#222";
    pen.lineWidth = 1.5;
    pen.beginPath();
    for (const step of [0, steps]) pen.lineTo(runX(step), runY(midpoint(strategy, step, this.schedule)));
    pen.stroke();
    if (isDynamic(strategy)) {
      pen.fillStyle = "#222";
      pen.fillRect(runX(this.#shownStep) - 0.75, run.top, 1.5, run.bottom - run.top);
    }
    pen.restore();
    for (const step of markedSteps(strategy, steps)) {
      const t = midpoint(strategy, step, this.schedule);
      if (t >= 0 && t <= tMax) drawDot(pen, runX(step), runY(t), 3.5, stepColour(step / steps));
    }
  }

  #drawAxes(pen, { curves, run, y, runY }) {
    const { steps, tMax } = this.schedule;
    pen.fillStyle = pen.strokeStyle = this.ink;
    pen.font = "10px sans-serif";
    pen.lineWidth = 1;
    const text = (words, left, top, align, baseline) => {
      pen.textAlign = align;
      pen.textBaseline = baseline;
      pen.fillText(words, left, top);
    };
    pen.globalAlpha = 0.75;
    for (const p of [0, 0.5, 1]) text(p, curves.left - 5, y(p), "right", "middle");
    for (const t of [0, tMax]) text(t, run.left - 5, runY(t), "right", "middle");
    for (const [box, last, name] of [[curves, tMax, "timestep t"], [run, steps, "training step"]]) {
      text(box === run ? 1 : 0, box.left, box.bottom + 5, "left", "top");
      text(last, box.right, box.bottom + 5, "right", "top");
      text(name, (box.left + box.right) / 2, box.bottom + 5, "center", "top");
    }
    text("p of ZO-high", curves.left, curves.bottom + 19, "left", "top");
    text("orange BP, blue ZO", run.right, run.bottom + 19, "right", "top");
    pen.globalAlpha = 0.25;
    pen.strokeRect(curves.left, curves.top, curves.right - curves.left, curves.bottom - curves.top);
    pen.globalAlpha = 1;
  }
}

function drawDot(pen, x, y, radius, colour) {
  pen.fillStyle = colour;
  pen.strokeStyle = "#222";
  pen.lineWidth = 1.5;
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
  pen.stroke();
}

const stepColour = (share) => STEP_COLOURS[Math.min(4, Math.round(4 * share))];

/** Red, green, blue and opacity. */
function mixed(p) {
  const [from, to, share] = p < 0.5 ? [BP_TO_ZO[0], BP_TO_ZO[1], 2 * p] : [BP_TO_ZO[1], BP_TO_ZO[2], 2 * p - 1];
  return [...from.map((value, i) => Math.round(value + share * (to[i] - value))), 255];
}
