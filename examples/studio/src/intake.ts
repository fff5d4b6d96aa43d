import { is_image_name } from "vit-msn";
import { open_camera } from "./camera.ts";
import { add_images, current, type StudioImage } from "./state.ts";
import { announce, h } from "./ui/dom.ts";
import { count_of } from "./ui/format.ts";
import { icon } from "./ui/icons.ts";

/** Adds files to the page: those that are images by their type. The first of them is shown on the stage. */
export function take_files(files: Iterable<File>): StudioImage[] {
  const all = [...files];
  const images = all.filter(({ type, name }) => type.startsWith("image/") || is_image_name(name));
  // Where there is no image at all, reading the other files shows an error, which helps more than silence.
  const taken = images.length > 0 ? images : all.slice(0, 1);
  const added = add_images(taken.map((file) => ({ name: file.name || "Pasted picture", blob: file })));
  if (added[0] !== undefined) current.value = added[0];
  const skipped = all.length - taken.length;
  const others = skipped > 0 ? `; ${count_of(skipped, "other file")} skipped` : "";
  announce(`${count_of(added.length, "picture")} added${others}.`);
  return added;
}

/** Buttons to choose, paste or take an image. */
export function intake_buttons(fail: (error: unknown) => void): HTMLElement {
  const input = h("input", {
    type: "file",
    accept: "image/*",
    multiple: true,
    class: "visually-hidden",
    id: "choose-pictures",
    tabindex: "-1",
    "aria-label": "Choose pictures",
    onchange: () => {
      take_files(input.files ?? []);
      input.value = "";
    },
  });
  const choose = h(
    "button",
    { type: "button", class: "primary", onclick: () => input.click() },
    icon("add"),
    "Choose pictures",
  );
  const camera = h(
    "button",
    { type: "button", onclick: () => void open_camera().then((file) => file && take_files([file])) },
    icon("camera"),
    h("span", {}, "Camera"),
  );
  const paste = h(
    "button",
    { type: "button", onclick: () => void paste_image().catch(fail) },
    icon("paste"),
    h("span", {}, "Paste"),
  );
  return h("div", { class: "intake" }, choose, camera, paste, input);
}

/** From the clipboard, where the browser lets a page read it. */
async function paste_image(): Promise<void> {
  if (navigator.clipboard?.read === undefined)
    throw new Error(
      "This browser reads the clipboard only by Ctrl+V (⌘V on a Mac): press it anywhere on the page.",
    );
  let items: ClipboardItems;
  try {
    items = await navigator.clipboard.read();
  } catch {
    throw new Error(
      "The browser didn't let the page read the clipboard. Press Ctrl+V (⌘V on a Mac) instead.",
    );
  }
  for (const item of items) {
    const type = item.types.find((name) => name.startsWith("image/"));
    if (type === undefined) continue;
    take_files([new File([await item.getType(type)], "Pasted picture", { type })]);
    return;
  }
  throw new Error("There is no picture in the clipboard. Copy one, and paste again.");
}

/** Images that are dropped or pasted anywhere on the page. */
export function accept_drops_and_pastes(): void {
  const veil = h("div", { class: "drop-veil", hidden: true }, h("p", {}, "Drop pictures anywhere"));
  document.body.append(veil);
  const has_files = (event: DragEvent) => event.dataTransfer?.types.includes("Files") ?? false;
  let depth = 0; // dragenter and dragleave come for every element on the way
  addEventListener("dragenter", (event) => {
    if (!has_files(event)) return;
    depth++;
    veil.hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (!has_files(event)) return;
    depth = Math.max(0, depth - 1);
    veil.hidden = depth === 0;
  });
  addEventListener("dragover", (event) => {
    if (has_files(event)) event.preventDefault();
  });
  addEventListener("drop", (event) => {
    depth = 0;
    veil.hidden = true;
    if (!has_files(event) || event.defaultPrevented) return;
    event.preventDefault();
    take_files(event.dataTransfer?.files ?? []);
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])].filter(({ type }) => type.startsWith("image/"));
    if (files.length > 0) take_files(files);
  });
}
