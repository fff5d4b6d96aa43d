import { current, type StudioImage } from "./state.ts";
import { h } from "./ui/dom.ts";
import type { PatchLayout } from "./worker/types.ts";

/** Images below this side are shown with their pixels visible. */
const SMALL_SIDE = 160;

export interface Overlay {
  /** A pixel for each patch. */
  image: ImageData;
  layout: PatchLayout;
  /** For people who don't see it. */
  label: string;
  /** 0 to 1; default 0.65. */
  opacity?: number;
  /** Interpolate between patches; default false. */
  smooth?: boolean;
}

/** The image, large, and what a panel lays over it. */
export class Stage {
  readonly element: HTMLElement;
  readonly #frame: HTMLElement;
  readonly #image: HTMLImageElement;
  readonly #canvas: HTMLCanvasElement;
  readonly #name: HTMLElement;
  readonly #detail: HTMLElement;

  constructor(when_empty: HTMLElement) {
    this.#image = h("img", { alt: "", draggable: "false" });
    this.#canvas = h("canvas", { class: "overlay", role: "img", hidden: true });
    this.#frame = h("div", { class: "frame", hidden: true }, this.#image, this.#canvas);
    this.#name = h("span", { class: "stage-name" });
    this.#detail = h("span", { class: "stage-detail" });
    this.element = h(
      "figure",
      { class: "stage" },
      h("div", { class: "light-table" }, this.#frame, when_empty),
      h("figcaption", {}, this.#name, this.#detail),
    );
    this.#image.onload = () => this.#fit();
    this.#image.onerror = () => {
      this.#frame.hidden = true;
      this.detail = "can't be shown as an image";
    };
    current.watch((image) => {
      this.#show(image);
      when_empty.hidden = image !== undefined;
    });
  }

  /** A few words next to the image's name. */
  set detail(text: string) {
    this.#detail.textContent = text;
  }

  lay_over({ image, layout, label, opacity = 0.65, smooth = false }: Overlay): void {
    const { region } = layout;
    this.#canvas.width = image.width;
    this.#canvas.height = image.height;
    this.#canvas.getContext("2d")?.putImageData(image, 0, 0);
    this.#canvas.setAttribute("aria-label", label);
    Object.assign(this.#canvas.style, {
      left: `${100 * region.x}%`,
      top: `${100 * region.y}%`,
      width: `${100 * region.width}%`,
      height: `${100 * region.height}%`,
      opacity: String(opacity),
      imageRendering: smooth ? "auto" : "pixelated",
    });
    this.#canvas.hidden = false;
  }

  clear_overlay(): void {
    this.#canvas.hidden = true;
  }

  #show(image: StudioImage | undefined): void {
    this.clear_overlay();
    this.detail = "";
    this.#frame.hidden = image === undefined;
    this.#name.textContent = image?.name ?? "";
    if (image === undefined) return;
    this.#image.src = image.url;
    this.#image.alt = image.name;
  }

  #fit(): void {
    const { naturalWidth: width, naturalHeight: height } = this.#image;
    this.#frame.style.setProperty("--ratio", String(width / height));
    this.#frame.classList.toggle("small", Math.max(width, height) < SMALL_SIDE);
  }
}
