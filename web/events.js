// Makes the pack's messages known to the frontend, which warns about types nobody listens to. Sent by nodes/host_ui.py.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const EVENTS = ["edgetune.step", "edgetune.done"];

app.registerExtension({
  name: "EdgeTune.Events",

  init() {
    for (const event of EVENTS) {
      // Nothing to draw: ComfyUI itself shows the progress bar and the line of text on the node.
      api.addEventListener(event, () => {});
    }
  },
});
