// Draws a run: losses by kind of step, raw and smoothed, and under them which kind each step was.

export const COLOURS = { bp: "#e8994f", zo: "#6a9be0" };
const RAW_ALPHA = 0.5;
const SMALLEST = 1e-9; // loss that the axis, which is logarithmic, can show
const MARKS = 5; // pixels, height of the strip of kinds
const LEFT = 42; // of the numbers
const SHORTEST = 20; // steps that the axis shows at least
const SAMPLED = 500; // losses that are looked at to find the range

/** Draws the run on the canvas at its present size in the page. */
export function drawCurve(canvas, run, ink) {
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width || !height) return;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  const count = run.kinds.length;
  if (!count) return;

  const span = Math.max(count, SHORTEST);
  const box = { left: LEFT, top: 5, right: width - 4, bottom: height - MARKS - 16 };
  const [low, high] = range(run);
  const x = (step) => box.left + ((step - run.first) / (span - 1)) * (box.right - box.left);
  const y = (loss) => {
    const share = (log(loss) - low) / (high - low);
    return box.bottom - Math.min(1, Math.max(0, share)) * (box.bottom - box.top);
  };

  drawAxes(pen, box, [low, high], [run.first, run.first + span - 1], y, ink);
  for (const [kind, series] of Object.entries(run.series)) {
    drawRaw(pen, series, x, y, COLOURS[kind]);
    drawSmooth(pen, series, x, y, COLOURS[kind]);
  }
  drawKinds(pen, run, x, box.bottom + 3, (box.right - box.left) / (span - 1));
}

const log = (loss) => Math.log(Math.max(loss, SMALLEST));

/** Logarithms of the lowest and the highest loss of the axis: a single high loss is cut off rather than flattening all others. */
function range(run) {
  const seen = [];
  for (const { raw, smooth } of Object.values(run.series)) {
    const stride = Math.ceil(raw.length / SAMPLED);
    for (let i = 0; i < raw.length; i += stride) seen.push(log(raw[i]), log(smooth[i]));
  }
  seen.sort((a, b) => a - b);
  const low = seen[Math.floor(0.01 * (seen.length - 1))];
  const high = seen[Math.ceil(0.99 * (seen.length - 1))];
  const margin = 0.06 * (high - low) || 1;
  return [low - margin, high + margin];
}

function drawAxes(pen, box, [low, high], [first, last], y, ink) {
  pen.font = "10px sans-serif";
  pen.fillStyle = pen.strokeStyle = ink;
  pen.lineWidth = 1;
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  for (const share of [0.1, 0.5, 0.9]) {
    const loss = Math.exp(low + share * (high - low));
    pen.globalAlpha = 0.15;
    pen.beginPath();
    pen.moveTo(box.left, y(loss));
    pen.lineTo(box.right, y(loss));
    pen.stroke();
    pen.globalAlpha = 0.75;
    pen.fillText(numberText(loss), box.left - 5, y(loss));
  }
  pen.textBaseline = "bottom";
  const bottom = box.bottom + MARKS + 16;
  pen.textAlign = "left";
  pen.fillText(first, box.left, bottom);
  pen.textAlign = "right";
  pen.fillText(`step ${last}`, box.right, bottom);
  pen.globalAlpha = 1;
}

const numberText = (loss) => (loss < 0.001 ? loss.toExponential(0) : loss.toPrecision(2));

/** Every loss, faint: as many as share a column of pixels are one line from the lowest to the highest. */
function drawRaw(pen, { steps, raw }, x, y, colour) {
  pen.fillStyle = colour;
  pen.globalAlpha = RAW_ALPHA;
  for (let i = 0; i < steps.length; ) {
    const column = Math.round(x(steps[i]));
    let [low, high] = [raw[i], raw[i]];
    while (++i < steps.length && Math.round(x(steps[i])) === column) {
      low = Math.min(low, raw[i]);
      high = Math.max(high, raw[i]);
    }
    pen.fillRect(column - 1, y(high) - 1, 2, y(low) - y(high) + 2);
  }
  pen.globalAlpha = 1;
}

function drawSmooth(pen, { steps, smooth }, x, y, colour) {
  pen.strokeStyle = colour;
  pen.lineWidth = 1.8;
  pen.lineJoin = "round";
  pen.beginPath();
  const pixels = steps.length ? x(steps.at(-1)) - x(steps[0]) : 0;
  const stride = Math.max(1, Math.floor(steps.length / Math.max(pixels, 1))); // a point a pixel
  for (let i = 0; i < steps.length; i += stride) pen.lineTo(x(steps[i]), y(smooth[i]));
  if (steps.length) pen.lineTo(x(steps.at(-1)), y(smooth.at(-1)));
  pen.stroke();
}

/** A strip of one mark per step; where several share a pixel, a blend. Filled once for each kind, which is cheap. */
function drawKinds(pen, run, x, top, width) {
  const stride = Math.max(1, Math.floor(0.5 / width));
  for (const [kind, colour] of Object.entries(COLOURS)) {
    pen.fillStyle = colour;
    pen.beginPath();
    for (let i = 0; i < run.kinds.length; i += stride) {
      if (run.kinds[i] === kind) pen.rect(x(run.first + i) - width / 2, top, stride * width, MARKS);
    }
    pen.fill();
  }
}
