// Probability of a ZO-high step at training step i and timestep t: trainers/schedule.py for the browser, which draws it
// while a value is being dragged. tests/browser/test_lib.py holds the two together.

export const LABELS = {
  dtap: "DTAP",
  tap: "TAP",
  bp_high: "BP-high",
  bp_low: "BP-low",
  zo_high: "ZO-high",
  random: "Random",
  reversed: "Reversed DTAP",
};
const DYNAMIC = ["dtap", "reversed"];
const CONSTANT = { bp_high: 0, bp_low: 0, zo_high: 1, random: 0.5 };
const GRID = 1_000_000; // values of p that are summed at most; beyond, evenly spaced steps stand for all

export const isConstant = (strategy) => strategy in CONSTANT;

/** The same whatever the step: then one curve says it all. */
export const isDynamic = (strategy) => DYNAMIC.includes(strategy);

/** What a BP step is called. */
export const bpName = (strategy) => (strategy === "bp_high" ? "BP-high" : "BP-low");

/** Timestep at which p is one half, equation 4: from t_max through t_mid halfway to 2 t_mid - t_max. */
export function midpoint(strategy, step, { steps, tMid, tMax }) {
  return isDynamic(strategy) ? tMax + (step / steps) * (2 * tMid - 2 * tMax) : tMid;
}

/** Probability of ZO-high at a 1-based step and a timestep, equations 3 and 5. */
export function zoProbability(strategy, step, t, schedule) {
  if (isConstant(strategy)) return CONSTANT[strategy];
  const slope = strategy === "reversed" ? -schedule.k : schedule.k;
  return 0.5 * (1 + Math.tanh(0.5 * slope * (t - midpoint(strategy, step, schedule))));
}

/** Expected number of ZO-high steps, t being uniform over 0 to t_max - 1. */
export function expectedZoSteps(strategy, schedule) {
  const { steps, tMax } = schedule;
  const rows = isDynamic(strategy) ? Math.min(steps, Math.max(1, Math.floor(GRID / tMax))) : 1;
  let sum = 0;
  for (let row = 0; row < rows; row++) {
    const step = rows === steps ? row + 1 : ((row + 0.5) / rows) * steps + 0.5;
    for (let t = 0; t < tMax; t++) sum += zoProbability(strategy, step, t, schedule);
  }
  return (sum / tMax) * (steps / rows);
}

/** The steps whose curves are drawn: first, quarters and last; none when p is the same at all of them. */
export function markedSteps(strategy, steps) {
  if (!isDynamic(strategy)) return [];
  const marks = [0, 1, 2, 3, 4].map((i) => Math.max(1, rounded((i * steps) / 4)));
  return [...new Set(marks)];
}

/** To the nearest whole number; halves to the even one, as numpy has it. */
const rounded = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

/** k after its handle was dragged from one distance of the midpoint to another, in any unit; the sign stays. */
export const draggedK = (k, from, to) => (k * Math.max(from, 1)) / Math.max(to, 1);
