// The schedule of DTAP Scheduler Preview, drawn in the node from its widgets and changed by dragging.
import { app } from "../../scripts/app.js";
import { DTAPPlot, PLOT_HEIGHT, PLOT_WIDTH } from "./lib/dtap_plot.mjs";

const NODE = "EdgeTune_DTAPPreview";
const DRAWN = ["steps", "t_max", "t_mid", "k", "strategy"];

const widgetOf = (node, name) => node.widgets.find((widget) => widget.name === name);

function scheduleOf(node) {
  const [steps, tMax, tMid, k, strategy] = DRAWN.map((name) => widgetOf(node, name).value);
  return { steps, tMax, tMid: Math.min(tMid, tMax), k, strategy };
}

/** Sets a number as typing it would. */
function setNumber(node, name, value) {
  const widget = widgetOf(node, name);
  const { min, max, precision = 0 } = widget.options;
  const rounded = Number(Math.min(max, Math.max(min, value)).toFixed(precision));
  if (rounded === widget.value) return;
  widget.value = rounded;
  widget.callback?.(rounded, app.canvas, node);
}

app.registerExtension({
  name: "EdgeTune.DTAP",

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;

    const plot = new DTAPPlot(({ tMid, k }) => {
      if (tMid !== undefined) setNumber(node, "t_mid", tMid);
      if (k !== undefined) setNumber(node, "k", k);
    });
    const redraw = () => plot.show(scheduleOf(node));
    const widget = node.addDOMWidget("schedule", "edgetune.dtap", plot.element, {
      serialize: false, // of the prompt
      getMinHeight: () => PLOT_HEIGHT,
      hideOnZoom: false,
    });
    widget.serialize = false; // of the workflow
    const [width, height] = node.computeSize();
    node.setSize([Math.max(width, PLOT_WIDTH), height]); // of a new node; a saved one has its own

    for (const name of DRAWN) {
      const changed = widgetOf(node, name);
      const callback = changed.callback;
      changed.callback = function () {
        const result = callback?.apply(this, arguments);
        redraw();
        return result;
      };
    }
    const onConfigure = node.onConfigure;
    node.onConfigure = function () {
      const result = onConfigure?.apply(this, arguments);
      redraw();
      return result;
    };
    const onRemoved = node.onRemoved;
    node.onRemoved = function () {
      plot.close();
      return onRemoved?.apply(this, arguments);
    };
    // The run's picture is of the same: not once more under the plot, in Nodes 2.0 and in the classic canvas.
    node.hideOutputImages = true;
    node.onDrawBackground = () => {};
    redraw();
  },
});
