import type { Panel } from "../panels/panel.ts";
import { h } from "./dom.ts";
import { icon } from "./icons.ts";

/** Panels behind tabs, by the pattern of the ARIA practices: arrows move between tabs, Tab goes into the panel. */
export class Tabs {
  readonly list: HTMLElement;
  readonly panels: HTMLElement;
  readonly #tabs = new Map<string, { panel: Panel; tab: HTMLButtonElement; body: HTMLElement }>();
  #shown: string | undefined;

  constructor(label: string) {
    this.list = h("div", { class: "tabs", role: "tablist", "aria-label": label });
    this.panels = h("div", { class: "panels" });
    this.list.onkeydown = (event) => this.#on_key(event);
  }

  add(panel: Panel): void {
    const { id } = panel;
    const tab = h(
      "button",
      {
        type: "button",
        role: "tab",
        id: `tab-${id}`,
        "aria-controls": `panel-${id}`,
        "aria-selected": "false",
        tabindex: "-1",
        onclick: () => this.open(id),
      },
      icon(panel.icon),
      h("span", {}, panel.title),
    );
    const body = h(
      "section",
      { role: "tabpanel", id: `panel-${id}`, "aria-labelledby": `tab-${id}`, class: "panel", hidden: true },
      panel.element,
    );
    this.#tabs.set(id, { panel, tab, body });
    this.list.append(tab);
    this.panels.append(body);
  }

  open(id: string): void {
    if (id === this.#shown || !this.#tabs.has(id)) return;
    const before = this.#shown === undefined ? undefined : this.#tabs.get(this.#shown);
    before?.panel.hide();
    this.#shown = id;
    for (const [name, { tab, body }] of this.#tabs) {
      tab.setAttribute("aria-selected", String(name === id));
      tab.tabIndex = name === id ? 0 : -1;
      body.hidden = name !== id;
    }
    const { panel, tab } = this.#tabs.get(id) as { panel: Panel; tab: HTMLElement };
    tab.scrollIntoView({ block: "nearest", inline: "nearest" });
    history.replaceState(null, "", `#${id}`);
    panel.show();
  }

  #on_key(event: KeyboardEvent): void {
    const ids = [...this.#tabs.keys()];
    const at = ids.indexOf(this.#shown ?? "");
    const next = {
      ArrowRight: at + 1,
      ArrowDown: at + 1,
      ArrowLeft: at - 1,
      ArrowUp: at - 1,
      Home: 0,
      End: ids.length - 1,
    }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const id = ids[(next + ids.length) % ids.length] as string;
    this.open(id);
    this.#tabs.get(id)?.tab.focus();
  }
}
