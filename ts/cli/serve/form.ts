import { setImmediate } from "node:timers/promises";
import { Busboy } from "@fastify/busboy";
import { from_base64 } from "./body.ts";
import { type HttpError, invalid } from "./http_error.ts";

interface Part {
  name: string | undefined;
  /** Undefined if the part has none. */
  filename: string | undefined;
  type: string;
  bytes: Buffer;
}

export interface Form {
  /** One file or more. */
  images: readonly Buffer[];
  /** Text parts by name; the first one wins. */
  fields: ReadonlyMap<string, string>;
}

/** The largest number of images in a request. */
export const MAX_IMAGES = 32;
const MAX_PARTS = 100;
const MAX_HEADERS = 50;
const MAX_HEADER_BYTES = 16 * 1024;
/** The standard's limit; a longer boundary would make searching slow. */
const MAX_BOUNDARY = 70;
const SLICE = 16 * 1024;

/** A multipart/form-data body whose files are the images. */
export async function read_form(body: Buffer, content_type: string, signal: AbortSignal): Promise<Form> {
  const parts = await read_parts(body, content_type, signal);
  // Some clients name the type of each value (application/json); others give a text neither filename nor type.
  const is_text = ({ filename, type }: Part) => filename === undefined && /^text\/|json$/.test(type);
  // A browser sends a nameless empty file if none was chosen.
  const files = parts.filter((part) => !is_text(part) && !(part.filename === "" && part.bytes.length === 0));
  if (files.length === 0 || files.length > MAX_IMAGES)
    throw invalid(`A form must contain 1 to ${MAX_IMAGES} files, the images; this one has ${files.length}.`);
  const fields = new Map<string, string>();
  for (const { name = "", bytes } of parts.filter(is_text))
    if (!fields.has(name)) fields.set(name, bytes.toString());
  return { images: files.map(({ bytes }) => bytes), fields };
}

async function read_parts(body: Buffer, content_type: string, signal: AbortSignal): Promise<Part[]> {
  const boundary = boundary_of(content_type);
  const parts: Part[] = [];
  let refusal: HttpError | undefined;
  const parser = new Busboy({
    headers: { "content-type": `multipart/form-data; boundary="${boundary}"` },
    limits: { parts: MAX_PARTS, headerPairs: MAX_HEADERS, headerSize: MAX_HEADER_BYTES },
    isPartAFile: () => true,
  });
  parser.on("file", (name, stream, filename: string | undefined, encoding, type) => {
    const chunks: Buffer[] = [];
    stream.on("data", (chunk: Buffer) => chunks.push(chunk));
    stream.on("error", () => {}); // the parser reports it, too
    stream.once("end", () => parts.push({ name, filename, type, bytes: joined(chunks, encoding) }));
  });
  parser.once("partsLimit", () => {
    refusal = invalid(`A form may have up to ${MAX_PARTS} parts.`);
  });
  const finished = new Promise<void>((resolve, reject) => {
    parser.once("finish", resolve).once("error", reject);
    signal.addEventListener("abort", reject, { once: true });
  });
  finished.catch(() => {});
  try {
    for (let at = 0; at < body.length && refusal === undefined; at += SLICE) {
      await Promise.race([write(parser, body.subarray(at, at + SLICE)), finished]);
      // Let other requests run.
      await setImmediate();
    }
    if (refusal !== undefined) throw refusal;
    parser.end();
    await finished;
  } catch {
    signal.throwIfAborted();
    throw (
      refusal ??
      invalid(
        "The body isn't a complete multipart/form-data form with the boundary that its Content-Type names.",
      )
    );
  }
  return parts;
}

/** The boundary in a form's Content-Type. @throws HttpError if it has none, or one that is too long. */
function boundary_of(content_type: string): string {
  const boundary = /;\s*boundary\s*=\s*("[^"]*"|[^;\s]*)/i.exec(content_type)?.[1]?.replaceAll('"', "") ?? "";
  if (boundary === "" || boundary.length > MAX_BOUNDARY)
    throw invalid(
      `The Content-Type of a form must include its boundary, of up to ${MAX_BOUNDARY} characters: multipart/form-data; boundary=…`,
    );
  return boundary;
}

/** Writes one slice; rejects with whatever the parser throws. */
function write(parser: InstanceType<typeof Busboy>, slice: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    parser.write(slice, (error) => (error ? reject(error) : resolve()));
  });
}

function joined(chunks: readonly Buffer[], encoding: string): Buffer {
  const bytes = Buffer.concat(chunks);
  return encoding === "base64" ? (from_base64(bytes.toString("latin1")) ?? bytes) : bytes;
}
