import { VitMsnError } from "../errors.ts";
import type { ImageFormat } from "./formats.ts";
import { invalid_image } from "./limits.ts";

/** The error for a file that the browser's decoder refuses. */
export function decode_error(format: ImageFormat, name: string, cause: unknown): VitMsnError {
  if (format !== "TIFF") {
    const reason = `it is damaged, or this browser doesn't support ${format}`;
    return invalid_image(`${name} can't be decoded: ${reason}.`, name, {}, cause);
  }
  return new VitMsnError(
    "UNSUPPORTED",
    `${name} is a ${format} image, which this browser can't read; convert it to PNG.`,
    { cause, details: { file: name, found: format } },
  );
}
