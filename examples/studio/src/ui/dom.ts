/** What an element can be given: attributes, `on…` listeners, and properties that aren't attributes by `.name`. */
export type Props = Record<string, unknown>;
export type Child = Node | string | number | false | null | undefined;

/** Makes an element: h("button", { type: "button", onclick }, "Go"). */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  props: Props = {},
  ...children: (Child | Child[])[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  set_props(element, props);
  element.append(...nodes(children));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** Makes an SVG element. */
export function s(tag: string, props: Props = {}, ...children: Child[]): SVGElement {
  const element = document.createElementNS(SVG, tag);
  set_props(element, props);
  element.append(...nodes(children));
  return element;
}

export function set_props(element: Element, props: Props): void {
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) element.removeAttribute(name);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value as EventListener);
    else if (name.startsWith(".")) Object.assign(element, { [name.slice(1)]: value });
    else element.setAttribute(name, value === true ? "" : String(value));
  }
}

function nodes(children: (Child | Child[])[]): (Node | string)[] {
  return children
    .flat()
    .filter(
      (child): child is Node | string | number => child !== false && child !== null && child !== undefined,
    )
    .map((child) => (typeof child === "number" ? String(child) : child));
}

let ids = 0;
/** An id that no other element has. */
export const unique_id = (name: string): string => `${name}-${++ids}`;

/** Says a sentence to screen readers, when they have finished the one before. */
export function announce(sentence: string): void {
  const region = document.getElementById("announcer") as HTMLElement;
  region.textContent = sentence;
}

/** Hands a file to the user's downloads. */
export function download(blob: Blob, name: string): void {
  const url = URL.createObjectURL(blob);
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Calls `work` once, `ms` after the last call. */
export function debounce(work: () => void, ms: number): () => void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(work, ms);
  };
}
