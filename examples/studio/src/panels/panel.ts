import type { Stage } from "../stage.ts";
import { current, model, type StudioImage } from "../state.ts";
import { h } from "../ui/dom.ts";
import type { IconName } from "../ui/icons.ts";
import { Task } from "../ui/task.ts";
import type { Client } from "../worker/client.ts";
import type { ImageRef } from "../worker/types.ts";

/** What every panel works with. */
export interface Context {
  client: Client;
  stage: Stage;
  /** Brings a panel to the front. */
  open: (id: string) => void;
}

/** One way of looking at the image, behind a tab. It works only while it is shown. */
export abstract class Panel {
  abstract readonly id: string;
  abstract readonly title: string;
  abstract readonly icon: IconName;
  readonly element: HTMLElement;
  readonly task = new Task();
  protected readonly context: Context;
  #is_shown = false;

  constructor(context: Context) {
    this.context = context;
    this.element = h("div", { class: "panel-body" });
    current.on_change(() => this.refresh_if_shown());
    model.on_change(() => this.refresh_if_shown());
  }

  show(): void {
    this.#is_shown = true;
    this.refresh();
  }

  hide(): void {
    this.#is_shown = false;
    this.task.stop();
    this.context.stage.clear_overlay();
    this.context.stage.detail = "";
  }

  refresh_if_shown(): void {
    if (this.#is_shown) this.refresh();
  }

  /** The image or the model changed, or the panel came to the front. */
  protected abstract refresh(): void;

  /** The image to work on; undefined where there is none, or no model. */
  protected get image(): StudioImage | undefined {
    return model.value === undefined ? undefined : current.value;
  }
}

/** What the Worker gets of an image. */
export const ref = ({ id, blob }: StudioImage): ImageRef => ({ id, blob });

/** A panel's title and what it is good for, in one sentence. */
export function heading(title: string, lead: string): HTMLElement {
  return h("header", { class: "panel-head" }, h("h2", {}, title), h("p", {}, lead));
}
