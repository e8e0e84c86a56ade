// Photos on their way from the user's disk into a sub-folder of ComfyUI's input folder.

const ENDINGS = /\.(jpe?g|png|webp|bmp|tiff?|gif|avif|heic|heif)$/i; // what Load Subject Images reads
export const ACCEPT = "image/*,.heic,.heif,.avif";

export const isPhoto = (file) => ENDINGS.test(file.name);
export const isMask = (name) => /\.mask\.\w+$/i.test(name); // 01.mask.png, which says what of 01.jpg is the subject

/** How many photos and masks the files are. */
export function counted(names) {
  const all = [...new Set(names)], masks = all.filter(isMask).length; // a file that was there twice is there once
  const some = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
  return some(all.length - masks, "photo") + (masks ? ` and ${some(masks, "mask")}` : "");
}

/** A folder name that says what the photos show and is none of those taken: "sks_dog", "sks_dog_2". */
export function folderName(prompt, taken) {
  const words = prompt.replace(/^\s*(a|an|the)?\s*(photo|picture|image)\s+of\s+(a|an|the|my)?\s*/i, "");
  const name = words.replace(/[^\p{L}\p{N}]+/gu, "_").replace(/^_+|_+$/g, "").slice(0, 40) || "photos";
  const lower = new Set(taken.map((folder) => folder.toLowerCase())); // names that differ in case are one on some disks
  let [unique, number] = [name, 2];
  while (lower.has(unique.toLowerCase())) unique = `${name}_${number++}`;
  return unique;
}

/** Sends the files by ComfyUI's own route, one after the other; returns where they are: {name, subfolder, type}. */
export async function upload(api, files, subfolder) {
  const places = [];
  for (const file of files) {
    const body = new FormData();
    body.append("image", file);
    body.append("subfolder", subfolder);
    const answer = await api.fetchApi("/upload/image", { method: "POST", body });
    if (!answer.ok) throw new Error(`${file.name}: ${answer.status} ${answer.statusText}`);
    places.push(await answer.json());
  }
  return places;
}

/** A row of small pictures with a line of text over it. */
export class Strip {
  constructor() {
    this.element = document.createElement("div");
    this.element.className = "edgetune-photos";
    Object.assign(this.element.style, { display: "flex", flexDirection: "column", gap: "4px", overflow: "hidden" });
    this.line = document.createElement("div");
    Object.assign(this.line.style, { font: "11px/1.4 sans-serif", color: "var(--input-text, #ddd)" });
    this.row = document.createElement("div");
    Object.assign(this.row.style, { display: "flex", flexWrap: "wrap", gap: "4px", overflowY: "auto", minHeight: 0 });
    this.element.append(this.line, this.row);
  }

  show(text, urls) {
    this.line.textContent = text;
    this.row.replaceChildren(...urls.map((url) => {
      const picture = document.createElement("img");
      picture.src = url;
      Object.assign(picture.style, { height: "72px", borderRadius: "4px", objectFit: "cover" });
      return picture;
    }));
  }
}
