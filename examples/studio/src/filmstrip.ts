import { current, images, remove_image, type StudioImage } from "./state.ts";
import { h } from "./ui/dom.ts";
import { icon } from "./ui/icons.ts";

/**
 * The images at hand, one of which is on the stage.
 * @param more what follows the last one.
 */
export function filmstrip(more: HTMLElement): HTMLElement {
  const list = h("ul", { class: "strip-list", "aria-label": "Pictures" });
  const shown = new Map<number, HTMLElement>();
  images.watch((all) => {
    for (const [id, item] of shown) {
      if (all.some((image) => image.id === id)) continue;
      item.remove();
      shown.delete(id);
    }
    for (const image of all) {
      if (shown.has(image.id)) continue;
      const item = frame_of(image);
      shown.set(image.id, item);
      list.append(item);
    }
  });
  current.watch((image) => {
    for (const [id, item] of shown) {
      const button = item.querySelector("button") as HTMLButtonElement;
      button.setAttribute("aria-pressed", String(id === image?.id));
    }
    const item = image && shown.get(image.id);
    item?.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
  return h("div", { class: "strip" }, h("div", { class: "strip-row" }, list, more));
}

function frame_of(image: StudioImage): HTMLElement {
  const choose = h(
    "button",
    {
      type: "button",
      class: "thumb",
      "aria-pressed": "false",
      onclick: () => {
        current.value = image;
      },
      onkeydown: (event: KeyboardEvent) => {
        if (event.key === "Delete") remove_with_focus(image, choose);
      },
    },
    thumbnail(image),
  );
  const remove = h(
    "button",
    {
      type: "button",
      class: "remove",
      "aria-label": `Remove ${image.name}`,
      onclick: () => remove_with_focus(image, choose),
    },
    icon("close"),
  );
  return h("li", {}, choose, remove);
}

/** What the browser can't show as an image is there by its name. */
function thumbnail({ url, name }: StudioImage): HTMLElement {
  const onerror = () => image.replaceWith(h("span", { class: "unreadable" }, name));
  const image = h("img", { src: url, alt: name, loading: "lazy", decoding: "async", onerror });
  return image;
}

/** The focus moves to the image next to it instead of being lost. */
function remove_with_focus(image: StudioImage, button: HTMLElement): void {
  const item = button.closest("li") as HTMLElement;
  const beside = item.nextElementSibling ?? item.previousElementSibling;
  remove_image(image);
  beside?.querySelector<HTMLElement>("button.thumb")?.focus();
}
