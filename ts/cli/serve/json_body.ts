import { from_base64 } from "./body.ts";
import { MAX_IMAGES } from "./form.ts";
import { invalid } from "./http_error.ts";

/** An image's bytes, or its URL. */
export type JsonImage = { bytes: Buffer } | { url: string };

export interface JsonRequest {
  images: readonly JsonImage[];
  /** Whether the images are a list, so that the answer is one, too. */
  is_list: boolean;
  top_k: number | undefined;
}

/** Keys of an image; `inputs` is Hugging Face's. */
const IMAGE_KEYS = ["image", "inputs", "url"] as const;
const KEYS: ReadonlySet<string> = new Set([...IMAGE_KEYS, "top_k", "parameters"]);
const SHAPE = '{"image": "<base64>"}, {"inputs": "<base64>"} or {"url": "https://…"}, or lists of these';

/** Parses a JSON body: an image as base64 or URL, or a list of such images, and `top_k`, which Hugging Face's clients put into `parameters`. */
export function read_json(body: Buffer): JsonRequest {
  const request = parse(body);
  if (!is_object(request)) throw invalid(`The body must be a JSON object: ${SHAPE}.`);
  refuse_unknown(request, KEYS, "The body");
  const { parameters = {} } = request;
  if (!is_object(parameters)) throw invalid('"parameters" must be a JSON object such as {"top_k": 3}.');
  refuse_unknown(parameters, new Set(["top_k"]), '"parameters"');
  const keys = IMAGE_KEYS.filter((key) => request[key] !== undefined);
  const [key] = keys;
  if (key === undefined || keys.length > 1)
    throw invalid(`The body must have one of the keys of an image: ${SHAPE}.`);
  const in_parameters = parse_top_k(parameters.top_k);
  const top_k = parse_top_k(request.top_k) ?? in_parameters;
  const given = request[key];
  const is_list = Array.isArray(given);
  const list: unknown[] = is_list ? given : [given];
  if (list.length === 0 || list.length > MAX_IMAGES)
    throw invalid(`"${key}" must be a list of 1 to ${MAX_IMAGES} images; this one has ${list.length}.`);
  return {
    images: list.map((image) => image_of(key, image)),
    is_list,
    top_k,
  };
}

/** A number of classes, as a number or text; undefined if it isn't given. @throws HttpError */
export function parse_top_k(given: unknown): number | undefined {
  if (given === undefined || given === null) return undefined;
  const top_k = typeof given === "string" && given.trim() !== "" ? Number(given) : given;
  if (Number.isSafeInteger(top_k) && (top_k as number) >= 1) return top_k as number;
  throw invalid(`top_k must be a positive integer, got ${quoted(String(given))}.`);
}

function parse(body: Buffer): unknown {
  try {
    return JSON.parse(body.toString().replace(/^\uFEFF/, ""));
  } catch {
    throw invalid(`The body isn't valid JSON, as its Content-Type claims; send ${SHAPE}.`);
  }
}

function is_object(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function refuse_unknown(object: object, known: ReadonlySet<string>, what: string): void {
  const unknown = Object.keys(object).find((key) => !known.has(key));
  if (unknown !== undefined)
    throw invalid(
      `${what} has the unknown key ${quoted(unknown)}; it may have ${[...known].map(quoted).join(", ")}.`,
    );
}

function image_of(key: (typeof IMAGE_KEYS)[number], value: unknown): JsonImage {
  if (typeof value !== "string") throw invalid(`"${key}" must be a string: ${SHAPE}.`);
  if (key === "url" || /^https?:/i.test(value)) return { url: value };
  const data = /^data:[^,]*;\s*base64\s*,/i.exec(value.slice(0, 1000))?.[0] ?? "";
  const bytes = from_base64(value.slice(data.length));
  if (bytes === undefined)
    throw invalid(`"${key}" must be an image file as base64, or as a data URL with base64.`);
  return { bytes };
}

/** A name from a client, shortened and on one line. */
export function quoted(name: string): string {
  return JSON.stringify(name.length > 40 ? `${name.slice(0, 40)}…` : name);
}
