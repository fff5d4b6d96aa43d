import { visible } from "../terminal.ts";

export const LOG_FORMATS = ["text", "json"] as const;
export type LogFormat = (typeof LOG_FORMATS)[number];

/** An answered request. */
export interface Access {
  /** The client's address; that of a proxy, if there is one. */
  client: string | undefined;
  method: string | undefined;
  /** Without the query, which may contain secrets. */
  path: string;
  status: number;
  /** Milliseconds from the request's headers to its answer. */
  ms: number;
  /** Bytes of the request's body that were read, and of the answer's. */
  bytes_in: number;
  bytes_out: number;
  /** Images in the request. */
  images: number;
  /** The code of an error. */
  error: string | undefined;
}

/** One line for a request. A client can't break out of it, whatever it sends. */
export function access_line(access: Access, format: LogFormat, now = new Date()): string {
  const time = now.toISOString();
  if (format === "json") return json_line({ time, ...access, path: shortened(access.path) });
  const { client = "-", method = "-", path, status, ms, bytes_in, bytes_out, images, error } = access;
  const outcome = error === undefined ? `${status}` : `${status} ${error}`;
  return `${time} ${client} ${method} ${visible(shortened(path))} ${outcome} ${ms} ms, ${images} images, ${bytes_in} B in, ${bytes_out} B out`;
}

/** One line for a message of the server itself. */
export function message_line(message: string, format: LogFormat | undefined, now = new Date()): string {
  if (format === "json") return json_line({ time: now.toISOString(), message });
  return `vit-msn: ${visible(message)}`;
}

/** JSON in ASCII: some readers of logs take further characters for the end of a line. */
function json_line(value: object): string {
  return JSON.stringify(value).replace(
    /[^ -~]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

const MAX_PATH = 200;

function shortened(path: string): string {
  return path.length > MAX_PATH ? `${path.slice(0, MAX_PATH)}…` : path;
}
