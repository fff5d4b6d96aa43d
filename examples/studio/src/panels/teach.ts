import type { Evaluation } from "vit-msn";
import { add_sample_classes } from "../samples.ts";
import { add_images, current, model, type StudioImage } from "../state.ts";
import { Bars } from "../ui/bars.ts";
import { announce, download, h, unique_id } from "../ui/dom.ts";
import { count_of, percent } from "../ui/format.ts";
import { icon } from "../ui/icons.ts";
import { Task } from "../ui/task.ts";
import { confusion_table } from "./confusion.ts";
import { type Context, heading, Panel, ref } from "./panel.ts";

/** A class of the user's own. */
interface TaughtClass {
  label: string;
  examples: { image: StudioImage; id: number }[];
  /** Examples that came with a file: features without images. */
  imported: number;
}

/** Kinds of the sample images, and how many of each the example teaches. */
const EXAMPLE = ["Bag", "Ankle boot", "Dress"];
const EXAMPLE_EACH = 5;

const size_of = ({ examples, imported }: TaughtClass): number => examples.length + imported;

/** Classes from a few images each, on the frozen backbone; leaving out each image in turn shows how good they are. */
export class TeachPanel extends Panel {
  readonly id = "teach";
  readonly title = "Teach";
  readonly icon = "teach";
  #classes: TaughtClass[] = [];
  /** The model that knows #classes. */
  #taught_to = model.value;
  readonly #list = h("ul", { class: "classes", "aria-label": "Your classes" });
  readonly #start: HTMLElement;
  readonly #accuracy = h("p", { class: "accuracy" });
  readonly #confusion = h("div", { class: "confusion" });
  readonly #bars = new Bars("Scores of your classes for this picture", 8);
  readonly #now = h("section", { hidden: true }, h("h3", {}, "This picture"), this.#bars.element);
  readonly #report = h("section", { class: "report", hidden: true }, this.#accuracy, this.#confusion);
  readonly #save: HTMLButtonElement;
  readonly #export: HTMLButtonElement;
  readonly #now_task = new Task();

  constructor(context: Context) {
    super(context);
    const name_id = unique_id("class-name");
    const name = h("input", {
      id: name_id,
      type: "text",
      autocomplete: "off",
      maxlength: 80,
      placeholder: "my mug",
      required: true,
    });
    const form = h(
      "form",
      {
        class: "new-class",
        onsubmit: (event: Event) => {
          event.preventDefault();
          this.#new_class(name.value);
          name.value = "";
        },
      },
      h("label", { for: name_id }, "A new class"),
      name,
      h("button", { type: "submit" }, icon("add"), "Add class"),
    );
    this.#start = h(
      "div",
      { class: "notice start" },
      h("p", {}, "Name a class and give it a few pictures; then another. Or begin with an example:"),
      h(
        "button",
        { type: "button", onclick: () => void this.#teach_example() },
        icon("play"),
        "Bags, boots or dresses?",
      ),
    );
    const button = (name: "download" | "upload", text: string, onclick: () => void) =>
      h("button", { type: "button", onclick }, icon(name), text);
    this.#save = button(
      "download",
      "Save what it learned",
      () => void this.#download("teach_save", "vit-msn-head.zip"),
    );
    this.#export = button(
      "download",
      "Save as a model",
      () => void this.#download("teach_export", "vit-msn-model.zip"),
    );
    const input = h("input", {
      type: "file",
      accept: ".zip,.json,.safetensors",
      multiple: true,
      class: "visually-hidden",
      tabindex: "-1",
      "aria-label": "Open what was saved",
      onchange: () => {
        void this.#import([...(input.files ?? [])]);
        input.value = "";
      },
    });
    this.element.append(
      heading(
        "Teach it something",
        "A few pictures of each class are enough. They are learned here, and stay here.",
      ),
      form,
      this.#start,
      this.task.element,
      this.#list,
      this.#report,
      this.#now_task.element,
      this.#now,
      h(
        "div",
        { class: "row wrap" },
        this.#save,
        this.#export,
        button("upload", "Open", () => input.click()),
        input,
      ),
    );
    // What was taught to one model is nothing to another: its features differ.
    model.on_change(() => void this.#teach_again());
    this.#draw();
  }

  protected override refresh(): void {
    const { image } = this;
    if (image === undefined) return;
    void this.#now_task.run("Looking …", async (signal) => {
      const scores = await this.context.client.call("teach_classify", [ref(image)], { signal });
      this.#now.hidden = scores === undefined;
      if (scores !== undefined) this.#bars.update(scores);
    });
  }

  #new_class(text: string): void {
    const label = text.trim();
    if (label === "") return;
    if (this.#classes.some((other) => other.label === label)) {
      this.task.fail(new Error(`There is a class "${label}" already; add pictures to it below.`));
      return;
    }
    this.#classes.push({ label, examples: [], imported: 0 });
    this.#draw();
    announce(`Class ${label} added. Give it pictures.`);
    this.#list.querySelector<HTMLElement>("li:last-child button.add-current")?.focus();
  }

  /** Two classes from the sample images. */
  async #teach_example(): Promise<void> {
    await this.#change("Teaching the example …", async (signal) => {
      for (const { label, images } of await add_sample_classes(EXAMPLE, EXAMPLE_EACH)) {
        const taught: TaughtClass = { label, examples: [], imported: 0 };
        this.#classes.push(taught);
        await this.#add(taught, images, signal);
      }
    });
  }

  #add_images(taught: TaughtClass, images: readonly StudioImage[]): Promise<void> {
    return this.#change(`Learning ${taught.label} …`, (signal) => this.#add(taught, images, signal));
  }

  async #add(taught: TaughtClass, images: readonly StudioImage[], signal: AbortSignal): Promise<void> {
    const { on_progress } = this.task;
    const ids = await this.context.client.call("teach_add", [taught.label, images.map(ref)], {
      signal,
      on_progress,
    });
    taught.examples.push(...images.map((image, i) => ({ image, id: ids[i] as number })));
  }

  /** Changes what is taught, then learns it. */
  async #change(what: string, work: (signal: AbortSignal) => Promise<void>): Promise<void> {
    await this.task.run(what, async (signal) => {
      try {
        await work(signal);
      } finally {
        this.#draw();
      }
      await this.#learn(signal);
    });
  }

  async #learn(signal: AbortSignal): Promise<void> {
    if (this.#classes.filter((taught) => size_of(taught) > 0).length < 2) {
      this.#report.hidden = true;
      return;
    }
    const { client } = this.context;
    const { on_progress } = this.task;
    await client.call("teach_fit", [], { signal });
    this.#save.disabled = this.#export.disabled = false;
    this.refresh_if_shown();
    this.#show_evaluation(await client.call("leave_one_out", [], { signal, on_progress }));
  }

  #show_evaluation(found: Evaluation): void {
    const { accuracy, correct, total } = found;
    this.#report.hidden = false;
    this.#accuracy.replaceChildren(
      h("span", { class: "accuracy-value" }, percent(accuracy)),
      h(
        "span",
        {},
        `leave-one-out accuracy: ${correct} of ${count_of(total, "picture")} named rightly by what the others taught`,
      ),
    );
    this.#confusion.replaceChildren(confusion_table(found));
    announce(`Leave-one-out accuracy ${percent(accuracy)}, ${correct} of ${total}.`);
  }

  async #download(method: "teach_save" | "teach_export", name: string): Promise<void> {
    await this.task.run("Packing …", async (signal) => {
      download(await this.context.client.call(method, [], { signal }), name);
      announce(`${name} is in your downloads.`);
    });
  }

  async #import(files: readonly File[]): Promise<void> {
    await this.#change("Opening …", async (signal) => {
      const { classes } = await this.context.client.call("teach_load", [files], { signal });
      this.#classes = classes.map(({ label, count }) => ({ label, examples: [], imported: count }));
      announce(`Opened ${count_of(classes.length, "class", "classes")}.`);
    });
  }

  /** Gives a new model the images of the classes. */
  async #teach_again(): Promise<void> {
    if (model.value === this.#taught_to) return;
    this.#taught_to = model.value;
    const old = this.#classes.filter((taught) => taught.examples.length > 0);
    this.#classes = [];
    this.#report.hidden = this.#now.hidden = true;
    this.#draw();
    if (old.length === 0) return;
    await this.#change("Teaching the new model …", async (signal) => {
      for (const { label, examples } of old) {
        const taught: TaughtClass = { label, examples: [], imported: 0 };
        this.#classes.push(taught);
        await this.#add(
          taught,
          examples.map(({ image }) => image),
          signal,
        );
      }
    });
  }

  #remove_class(taught: TaughtClass): Promise<void> {
    return this.#change("Forgetting …", async (signal) => {
      if (size_of(taught) > 0) await this.context.client.call("teach_remove", [taught.label], { signal });
      this.#classes = this.#classes.filter((other) => other !== taught);
    });
  }

  #remove_example(taught: TaughtClass, id: number): Promise<void> {
    return this.#change("Forgetting …", async (signal) => {
      await this.context.client.call("teach_remove", [id], { signal });
      taught.examples = taught.examples.filter((example) => example.id !== id);
    });
  }

  #draw(): void {
    this.#start.hidden = this.#classes.length > 0;
    this.#list.replaceChildren(...this.#classes.map((taught) => this.#card(taught)));
    const can_save = this.#classes.filter((taught) => size_of(taught) > 0).length >= 2;
    this.#save.disabled = this.#export.disabled = !can_save;
  }

  #card(taught: TaughtClass): HTMLElement {
    const { label, examples, imported } = taught;
    const input = h("input", {
      type: "file",
      accept: "image/*",
      multiple: true,
      class: "visually-hidden",
      tabindex: "-1",
      "aria-label": `Choose pictures of ${label}`,
      onchange: () => void this.#add_images(taught, as_images(input.files ?? [])),
    });
    const add_current = h(
      "button",
      {
        type: "button",
        class: "add-current",
        "aria-label": `This picture is ${label}: add it`,
        onclick: () => {
          if (current.value !== undefined) void this.#add_images(taught, [current.value]);
        },
      },
      icon("add"),
      "This picture",
    );
    const choose = h(
      "button",
      { type: "button", "aria-label": `Choose pictures of ${label}`, onclick: () => input.click() },
      "Choose",
    );
    const forget = h(
      "button",
      {
        type: "button",
        class: "quiet icon-only",
        "aria-label": `Forget ${label}`,
        onclick: () => void this.#remove_class(taught),
      },
      icon("trash"),
    );
    const hint =
      imported > 0 ? `${count_of(imported, "example")} from a file` : count_of(examples.length, "picture");
    const card = h(
      "li",
      { class: "class-card" },
      h("div", { class: "class-head" }, h("h3", {}, label), h("span", { class: "hint" }, hint), forget),
      h(
        "ul",
        { class: "examples", "aria-label": `Pictures of ${label}` },
        examples.map(({ image, id }) =>
          h(
            "li",
            {},
            h(
              "button",
              {
                type: "button",
                "aria-label": `Remove ${image.name} from ${label}`,
                onclick: () => void this.#remove_example(taught, id),
              },
              h("img", { src: image.url, alt: "" }),
              icon("close"),
            ),
          ),
        ),
      ),
      h("div", { class: "row" }, add_current, choose, input),
    );
    card.addEventListener("dragover", (event) => event.preventDefault());
    card.addEventListener("drop", (event) => {
      const files = [...(event.dataTransfer?.files ?? [])];
      if (files.length === 0) return;
      event.preventDefault(); // the page leaves it alone
      void this.#add_images(taught, as_images(files));
    });
    return card;
  }
}

function as_images(files: Iterable<File>): StudioImage[] {
  return add_images([...files].map((file) => ({ name: file.name, blob: file })));
}
