// The studio: a page on which one sees what a ViT-MSN sees. Nothing that is shown to it leaves the device.
import { filmstrip } from "./filmstrip.ts";
import { accept_drops_and_pastes, intake_buttons } from "./intake.ts";
import { AttentionPanel } from "./panels/attention.ts";
import { EnginePanel, FIRST_SETTINGS } from "./panels/engine.ts";
import { FeaturesPanel } from "./panels/features.ts";
import { MaskingPanel } from "./panels/masking.ts";
import type { Context } from "./panels/panel.ts";
import { PretrainPanel } from "./panels/pretrain.ts";
import { RecognisePanel } from "./panels/recognise.ts";
import { TeachPanel } from "./panels/teach.ts";
import { add_more_samples, add_samples } from "./samples.ts";
import { Stage } from "./stage.ts";
import { current, model } from "./state.ts";
import { announce, h } from "./ui/dom.ts";
import { bytes } from "./ui/format.ts";
import { icon } from "./ui/icons.ts";
import { Tabs } from "./ui/tabs.ts";
import { Task } from "./ui/task.ts";
import { theme_button } from "./ui/theme.ts";
import { Client } from "./worker/client.ts";

const SAMPLES_EACH = 5;
const FIRST_IMAGE = 9;

const new_client = () => new Client(new URL("./worker.js", import.meta.url));
const client = new_client();
const tabs = new Tabs("Ways to look");
const task = new Task();
const stage = new Stage(h("p", { class: "empty" }, "Drop a picture here, paste one, or choose one below."));
const context: Context = { client, stage, open: (id) => tabs.open(id) };
const engine = new EnginePanel(context);
const panels = [
  new RecognisePanel(context),
  new AttentionPanel(context),
  new FeaturesPanel(context),
  new MaskingPanel(context),
  new TeachPanel(context),
  new PretrainPanel(context, engine, new_client),
  engine,
];
for (const panel of panels) tabs.add(panel);

const chip = h("button", { type: "button", class: "chip", onclick: () => tabs.open("engine") });
model.watch((info) => {
  const text = info
    ? `${info.name} · ${info.engine.adapter ? "WebGPU" : `CPU × ${info.engine.threads}`} · ${info.dtype} · ${bytes(info.memory.bytes)}`
    : "Loading the model …";
  chip.replaceChildren(
    h("span", { class: `lamp ${info ? "on" : ""}`, "aria-hidden": "true" }),
    h("span", {}, text),
  );
});

const more = h(
  "button",
  {
    type: "button",
    class: "more",
    onclick: () =>
      void task.run("Adding samples …", async () => {
        const added = await add_more_samples(SAMPLES_EACH);
        more.hidden = added === 0;
        announce(`${added} sample pictures added.`);
      }),
  },
  icon("add"),
  "More samples",
);

document.getElementById("top")?.append(chip, theme_button());
document.getElementById("stage")?.append(
  stage.element,
  filmstrip(more),
  intake_buttons((error) => task.fail(error)),
  task.element,
);
document.getElementById("ways")?.append(tabs.list, tabs.panels);
accept_drops_and_pastes();

tabs.open(panels.find(({ id }) => `#${id}` === location.hash)?.id ?? "recognise");
void task.run("Opening the sample pictures …", async () => {
  const samples = await add_samples();
  current.value ??= samples[FIRST_IMAGE] ?? samples[0];
});
void start();

async function start(): Promise<void> {
  await engine.load(FIRST_SETTINGS);
  // Where it failed, the engine's panel shows why.
  if (model.value === undefined) tabs.open("engine");
  document.documentElement.dataset.ready = String(model.value !== undefined);
}

if ("serviceWorker" in navigator) {
  // After the first result, so that keeping everything for offline use doesn't delay it.
  const keep = () => void navigator.serviceWorker.register(new URL("./service_worker.js", import.meta.url));
  if (model.value) keep();
  else model.on_change(keep);
}
