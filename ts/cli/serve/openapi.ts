import { MAX_IMAGES } from "./form.ts";

type Json = Readonly<Record<string, unknown>>;

export interface OpenApiOptions {
  version: string;
  /** The tasks that are served. */
  tasks: readonly ("classify" | "embed")[];
  /** Classes in an answer to a request without top_k. */
  top_k: number;
}

/** A PNG file of one pixel. */
const ONE_PIXEL =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==";

/** The statuses of refused requests, and why. */
const REFUSALS = {
  400: "The request, its image or a parameter can't be used.",
  403: "The server doesn't fetch images from this URL.",
  408: "The body didn't arrive in time.",
  413: "The body is too large.",
  415: "The content type or encoding isn't supported.",
  417: "The Expect header isn't 100-continue.",
  421: "The server doesn't answer to this host name.",
  422: "The image's URL can't be fetched.",
  429: "Too many requests are in progress.",
  500: "The server failed.",
  503: "The engine failed, or the server is about to stop.",
  504: "The answer took too long.",
} as const;

const ref = (name: string): Json => ({ $ref: `#/components/schemas/${name}` });
const object = (properties: Json, required = Object.keys(properties)): Json => ({
  type: "object",
  properties,
  required,
});
const list_of = (items: Json): Json => ({ type: "array", items });
const json = (schema: Json): Json => ({ content: { "application/json": { schema } } });

/** OpenAPI 3.1's description of the server. */
export function openapi_document({ version, tasks, top_k }: OpenApiOptions): Json {
  return {
    openapi: "3.1.0",
    info: {
      title: "vit-msn serve",
      version,
      description: "A ViT-MSN model over HTTP.",
      license: { name: "Apache-2.0", identifier: "Apache-2.0" },
    },
    paths: {
      ...(tasks.includes("classify") && { "/classify": post("classify", "The likeliest classes", top_k) }),
      ...(tasks.includes("embed") && { "/embed": post("embed", "An embedding", undefined) }),
      "/health": get("health", "Whether the process works; not so if restarting it would help", state()),
      "/ready": get("ready", "Whether it should get requests; not so while it drains or reloads", state()),
      "/metrics": get("metrics", "Prometheus metrics", {
        200: { description: "Metrics.", content: { "text/plain": { schema: { type: "string" } } } },
      }),
      "/openapi.json": get("openapi", "This document", {
        200: { description: "OpenAPI 3.1.", ...json({ type: "object" }) },
      }),
    },
    components: { schemas: schemas(top_k) },
  };
}

function get(operationId: string, summary: string, answers: Json): Json {
  return { get: { operationId, summary, responses: { ...answers, ...refusals([417, 421]) } } };
}

function state(): Json {
  const described = (description: string) => ({ description, ...json(ref("State")) });
  return { 200: described("It does."), 503: described("It doesn't.") };
}

function post(task: "classify" | "embed", summary: string, top_k: number | undefined): Json {
  const answer = ref(task === "classify" ? "Classes" : "Embedding");
  const parameter = {
    name: "top_k",
    in: "query",
    description: "The number of classes, best first.",
    schema: { type: "integer", minimum: 1, maximum: Number.MAX_SAFE_INTEGER, default: top_k },
  };
  const several = object({ images: list_of(answer) });
  return {
    post: {
      operationId: task,
      summary: `${summary} of an image, or of each of several`,
      ...(top_k !== undefined && { parameters: [parameter] }),
      requestBody: request_body(),
      responses: {
        200: { description: "One image's answer, or a list's.", ...json({ oneOf: [answer, several] }) },
        ...refusals(Object.keys(REFUSALS).map(Number)),
      },
    },
  };
}

function request_body(): Json {
  const file: Json = { type: "string", contentMediaType: "application/octet-stream" };
  const form = object({ image: { oneOf: [file, list_of(file)] }, top_k: ref("TopK") }, ["image"]);
  return {
    required: true,
    content: {
      "image/*": { schema: file },
      "application/octet-stream": { schema: file },
      "multipart/form-data": { schema: form },
      "application/json": {
        examples: {
          one: { value: { image: ONE_PIXEL } },
          several: { value: { inputs: [ONE_PIXEL, ONE_PIXEL] } },
        },
        schema: { oneOf: ["image", "inputs", "url"].map((key) => ref(`JsonOf_${key}`)) },
      },
    },
  };
}

function refusals(statuses: readonly number[]): Json {
  return Object.fromEntries(
    statuses.map((status) => [
      status,
      { description: REFUSALS[status as keyof typeof REFUSALS], ...json(ref("Error")) },
    ]),
  );
}

function schemas(top_k: number): Json {
  const base64: Json = { type: "string", contentEncoding: "base64", minLength: 1, examples: [ONE_PIXEL] };
  const url: Json = { type: "string", format: "uri" };
  const one_or_several = (item: Json) => ({
    oneOf: [item, { ...list_of(item), minItems: 1, maxItems: MAX_IMAGES }],
  });
  const json_of = (key: string, item: Json) => ({
    ...object(
      {
        [key]: one_or_several(item),
        top_k: ref("TopK"),
        parameters: { ...object({ top_k: ref("TopK") }, []), additionalProperties: false },
      },
      [key],
    ),
    additionalProperties: false,
  });
  return {
    Classes: object({ results: list_of(object({ label: { type: "string" }, score: { type: "number" } })) }),
    Embedding: object({ embedding: list_of({ type: "number" }) }),
    State: object({ status: { enum: ["ok", "loading", "dead", "stopping"] } }),
    Error: object({ error: object({ code: { type: "string" }, message: { type: "string" } }) }),
    TopK: {
      default: top_k,
      anyOf: [
        { type: "integer", minimum: 1, maximum: Number.MAX_SAFE_INTEGER },
        { type: "string", pattern: "^[1-9][0-9]{0,14}$" },
        { type: "null" },
      ],
    },
    JsonOf_image: json_of("image", base64),
    JsonOf_inputs: json_of("inputs", base64),
    JsonOf_url: json_of("url", url),
  };
}
