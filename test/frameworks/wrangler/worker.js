import { DurableObject } from "cloudflare:workers";
import { pipeline } from "vit-msn";

const MODEL_FILES = ["config.json", "preprocessor_config.json", "model.safetensors"];

/** Keeps the model in memory between requests. */
export class Classifier extends DurableObject {
  #loading;

  async classify(name) {
    this.#loading ??= this.#load();
    const classify = await this.#loading;
    const [best] = await classify(await this.#asset(name), { top_k: 1 });
    return best;
  }

  async #load() {
    const files = await Promise.all(
      MODEL_FILES.map(async (name) => [name, await this.#asset(`model/${name}`)]),
    );
    return pipeline("image-classification", new Map(files));
  }

  async #asset(name) {
    const response = await this.env.ASSETS.fetch(`https://assets/${name}`);
    if (!response.ok) throw new Error(`${name}: ${response.status}`);
    return new Uint8Array(await response.arrayBuffer());
  }
}

export default {
  async fetch(request, env) {
    if (new URL(request.url).pathname !== "/api/classify") return new Response("ready");
    return Response.json(await env.CLASSIFIER.getByName("only").classify("boot.png"));
  },
};
