// One training run as the messages of nodes/host_runs.py tell it: losses by kind of step, raw and smoothed.

const SMOOTHING = 0.95; // of the running mean: about the last 20 steps of a kind
export const KINDS = ["bp", "zo"];

/** The losses of one kind of step. */
class Series {
  steps = [];
  raw = [];
  smooth = [];
  #mean = 0;
  #weight = 0;

  add(step, loss) {
    this.#mean = SMOOTHING * this.#mean + (1 - SMOOTHING) * loss;
    this.#weight = SMOOTHING * this.#weight + (1 - SMOOTHING);
    this.steps.push(step);
    this.raw.push(loss);
    this.smooth.push(this.#mean / this.#weight);
  }
}

export class Run {
  series = Object.fromEntries(KINDS.map((kind) => [kind, new Series()]));
  kinds = [];
  first = 1; // step of the first loss: not 1 where a run was resumed
  last = null; // message

  /** Takes in a message of "edgetune.step", or a run of GET /edgetune/runs. False: steps between are missing. */
  take(message) {
    if (!this.kinds.length) this.first = message.first;
    const from = message.step - message.losses.length + 1;
    const known = this.first + this.kinds.length - from; // losses of this message that an earlier one brought
    if (known < 0) return false;
    for (let i = known; i < message.losses.length; i++) {
      this.series[message.kinds[i]].add(from + i, message.losses[i]);
      this.kinds.push(message.kinds[i]);
    }
    if (message.step >= (this.last?.step ?? 0)) this.last = message;
    return true;
  }

  get stepsPerSecond() {
    return this.last?.elapsed_s ? this.kinds.length / this.last.elapsed_s : 0;
  }

  get secondsLeft() {
    return this.stepsPerSecond ? (this.last.steps - this.last.step) / this.stepsPerSecond : null;
  }
}

/** "4 steps/s", or "2.5 s/step" where a step takes longer than a second. */
export const rateText = (stepsPerSecond) =>
  stepsPerSecond >= 1 ? `${stepsPerSecond.toPrecision(2)} steps/s` : `${(1 / stepsPerSecond).toPrecision(2)} s/step`;

/** "5 s", "12 min", "3 h 20 min". */
export function timeText(seconds) {
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** "812 MiB", "5.3 GiB". */
export function sizeText(bytes) {
  const mib = bytes / 2 ** 20;
  return mib < 1024 ? `${Math.round(mib)} MiB` : `${(mib / 1024).toFixed(1)} GiB`;
}
