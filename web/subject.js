// Photos for Load Subject Images from the user's disk: a button, and drag and drop onto the node.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { ACCEPT, counted, folderName, isMask, isPhoto, Strip, upload } from "./lib/photos.mjs";

const NODE = "EdgeTune_LoadSubjectImages";
const BUTTON = "upload photos";
const STRIP_HEIGHT = 110;
const SHOWN = 24; // thumbnails

const widgetOf = (node, name) => node.widgets.find((widget) => widget.name === name);

const say = (severity, detail) =>
  app.extensionManager.toast.add({ severity, summary: "Load Subject Images", detail, life: 8000 });

/** What the folder list offers now. */
async function folders() {
  const answer = await api.fetchApi(`/object_info/${NODE}`);
  const [kind, options] = (await answer.json())[NODE].input.required.folder;
  return Array.isArray(kind) ? kind : options.options;
}

async function take(node, files) {
  const photos = files.filter(isPhoto);
  const others = files.filter((file) => !isPhoto(file)).map((file) => file.name);
  if (others.length) say("warn", `Not photos, left out: ${others.join(", ")}`);
  if (!photos.length) return;
  try {
    const name = folderName(widgetOf(node, "instance_prompt").value, await folders());
    const places = await upload(api, photos, name);
    const folder = widgetOf(node, "folder");
    folder.options.values = await folders();
    folder.value = name;
    folder.callback?.(name, app.canvas, node);
    showPhotos(node, name, places);
  } catch (error) {
    say("error", `Upload failed. ${error.message}`);
  }
}

/** The photos as they were uploaded; after a run ComfyUI shows them as they are trained on. */
function showPhotos(node, name, places) {
  let widget = widgetOf(node, "photos");
  if (!widget) {
    const strip = new Strip();
    widget = node.addDOMWidget("photos", "edgetune.photos", strip.element, {
      serialize: false, // of the prompt
      getMinHeight: () => STRIP_HEIGHT,
      getMaxHeight: () => STRIP_HEIGHT,
    });
    widget.serialize = false; // of the workflow
    widget.strip = strip;
    strip.element.style.minHeight = `${STRIP_HEIGHT}px`;
    node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
  }
  const urls = places.filter((place) => !isMask(place.name)).slice(0, SHOWN).map(({ name: filename, subfolder, type }) =>
    api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type, preview: "webp;70" })}`));
  widget.strip.show(`${counted(places.map((place) => place.name))} in ${name}`, urls);
}

function choose(node) {
  const input = document.createElement("input");
  Object.assign(input, { type: "file", multiple: true, accept: ACCEPT });
  input.addEventListener("change", () => take(node, [...input.files]));
  input.click();
}

app.registerExtension({
  name: "EdgeTune.Subject",

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;

    const button = node.addWidget("button", BUTTON, null, () => choose(node), { serialize: false });
    button.serialize = false;
    node.onDragOver = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");
    node.onDragDrop = async (event) => {
      const files = [...(event.dataTransfer?.files ?? [])];
      if (!files.length) return false;
      await take(node, files);
      return true;
    };
  },
});
