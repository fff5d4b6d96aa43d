import { current, type Picture, pictures, remove_picture } from "./state.ts";
import { h } from "./ui/dom.ts";
import { icon } from "./ui/icons.ts";

/**
 * The pictures at hand, one of which is on the stage.
 * @param more what follows the last one.
 */
export function filmstrip(more: HTMLElement): HTMLElement {
  const list = h("ul", { class: "strip-list", "aria-label": "Pictures" });
  const shown = new Map<number, HTMLElement>();
  pictures.watch((all) => {
    for (const [id, item] of shown) {
      if (all.some((picture) => picture.id === id)) continue;
      item.remove();
      shown.delete(id);
    }
    for (const picture of all) {
      if (shown.has(picture.id)) continue;
      const item = frame_of(picture);
      shown.set(picture.id, item);
      list.append(item);
    }
  });
  current.watch((picture) => {
    for (const [id, item] of shown) {
      const button = item.querySelector("button") as HTMLButtonElement;
      button.setAttribute("aria-pressed", String(id === picture?.id));
    }
    const item = picture && shown.get(picture.id);
    item?.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
  return h("div", { class: "strip" }, h("div", { class: "strip-row" }, list, more));
}

function frame_of(picture: Picture): HTMLElement {
  const choose = h(
    "button",
    {
      type: "button",
      class: "thumb",
      "aria-pressed": "false",
      onclick: () => {
        current.value = picture;
      },
      onkeydown: (event: KeyboardEvent) => {
        if (event.key === "Delete") remove_with_focus(picture, choose);
      },
    },
    thumbnail(picture),
  );
  const remove = h(
    "button",
    {
      type: "button",
      class: "remove",
      "aria-label": `Remove ${picture.name}`,
      onclick: () => remove_with_focus(picture, choose),
    },
    icon("close"),
  );
  return h("li", {}, choose, remove);
}

/** What the browser can't show as an image is there by its name. */
function thumbnail({ url, name }: Picture): HTMLElement {
  const onerror = () => image.replaceWith(h("span", { class: "unreadable" }, name));
  const image = h("img", { src: url, alt: name, loading: "lazy", decoding: "async", onerror });
  return image;
}

/** The focus moves to the picture next to it instead of being lost. */
function remove_with_focus(picture: Picture, button: HTMLElement): void {
  const item = button.closest("li") as HTMLElement;
  const beside = item.nextElementSibling ?? item.previousElementSibling;
  remove_picture(picture);
  beside?.querySelector<HTMLElement>("button.thumb")?.focus();
}
