import { h, unique_id } from "./dom.ts";

export interface SliderOptions {
  label: string;
  min: number;
  max: number;
  step?: number;
  value: number;
  /** The value in words. */
  format: (value: number) => string;
  on_input: (value: number) => void;
}

/** A range with its name and its value next to it. */
export class Slider {
  readonly element: HTMLElement;
  readonly #input: HTMLInputElement;
  readonly #output: HTMLOutputElement;
  readonly #format: SliderOptions["format"];

  constructor({ label, min, max, step = 1, value, format, on_input }: SliderOptions) {
    const id = unique_id("slider");
    this.#format = format;
    this.#input = h("input", { type: "range", id, min, max, step, ".value": String(value) });
    this.#output = h("output", { for: id });
    this.#input.oninput = () => {
      this.#notify();
      on_input(this.value);
    };
    this.element = h("div", { class: "slider" }, h("label", { for: id }, label), this.#output, this.#input);
    this.#notify();
  }

  get value(): number {
    return this.#input.valueAsNumber;
  }

  set value(value: number) {
    this.#input.value = String(value);
    this.#notify();
  }

  set max(max: number) {
    this.#input.max = String(max);
    this.#notify();
  }

  set disabled(disabled: boolean) {
    this.#input.disabled = disabled;
  }

  #notify(): void {
    const text = this.#format(this.value);
    this.#output.value = text;
    this.#input.setAttribute("aria-valuetext", text);
    const { min, max } = this.#input;
    const share = (this.value - Number(min)) / (Number(max) - Number(min) || 1);
    this.#input.style.setProperty("--share", String(share));
  }
}

/** One of a few, as a row of buttons that are radio buttons. */
export class Choice<T extends string> {
  readonly element: HTMLFieldSetElement;

  constructor(legend: string, options: Readonly<Record<T, string>>, value: T, on_change: (value: T) => void) {
    const name = unique_id("choice");
    const entries = Object.entries(options) as [T, string][];
    this.element = h(
      "fieldset",
      { class: "choice" },
      h("legend", {}, legend),
      h(
        "div",
        { class: "segments" },
        entries.map(([key, text]) =>
          h(
            "label",
            {},
            h("input", {
              type: "radio",
              name,
              value: key,
              ".checked": key === value,
              onchange: () => on_change(key),
            }),
            h("span", {}, text),
          ),
        ),
      ),
    );
  }

  get value(): T {
    return (this.element.querySelector("input:checked") as HTMLInputElement).value as T;
  }

  set value(value: T) {
    for (const input of this.element.querySelectorAll("input")) input.checked = input.value === value;
  }
}

/** A switch. */
export function toggle(label: string, checked: boolean, on_change: (checked: boolean) => void): HTMLElement {
  const input = h("input", { type: "checkbox", role: "switch", ".checked": checked });
  input.onchange = () => on_change(input.checked);
  return h("label", { class: "toggle" }, input, h("span", {}, label));
}

/** A list that one chooses from. */
export function select<T extends string>(
  label: string,
  options: Readonly<Record<T, string>>,
  value: NoInfer<T>,
): { element: HTMLElement; input: HTMLSelectElement } {
  const id = unique_id("select");
  const input = h(
    "select",
    { id },
    (Object.entries(options) as [T, string][]).map(([key, text]) =>
      h("option", { value: key, selected: key === value }, text),
    ),
  );
  return { element: h("div", { class: "field" }, h("label", { for: id }, label), input), input };
}
