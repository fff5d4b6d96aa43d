import { type ErrorCode, VitMsnError } from "../errors.ts";

// Separators, drive letters and control characters: none is needed in a model's file names.
// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is refused here
const FORBIDDEN = /[\\:\u0000-\u001f\u007f]/;
const MAX_NAME_LENGTH = 1024;

/**
 * Returns a relative path's segments, after checking that it can't leave the folder to which it is relative. Names are
 * untrusted: they come from options and from a checkpoint's index.
 */
export function path_segments(path: string, what: string, code: ErrorCode): string[] {
  const segments = path.split("/");
  const sound = segments.every(
    (name) => name !== "" && name !== "." && name !== ".." && !FORBIDDEN.test(name),
  );
  if (!sound || path.length > MAX_NAME_LENGTH) {
    throw new VitMsnError(
      code,
      `The ${what} ${JSON.stringify(path.slice(0, 200))} isn't a plain relative path: it must not be empty or absolute, ` +
        'or hold "..", a backslash, a colon or control characters.',
      { details: { [what]: path } },
    );
  }
  return segments;
}

/** The segments of an optional folder; none for "". */
export function folder_segments(folder: string | undefined): string[] {
  const trimmed = (folder ?? "").replace(/^(?:\.\/)+|\/+$/g, "");
  return trimmed === "" || trimmed === "." ? [] : path_segments(trimmed, "subfolder", "INVALID_ARGUMENT");
}
