import { VitMsnError } from "../errors.ts";

/** The maximum number of pixels that are decoded: where Pillow raises DecompressionBombError. */
export const MAX_PIXELS = 2 * 89_478_485;
/** The maximum width and height: JPEG's own limit. */
export const MAX_SIDE = 65_535;
/** The maximum number of bytes of one image file. */
export const MAX_BYTES = 256 * 1024 * 1024;

/** @throws VitMsnError INVALID_IMAGE for a size of zero and for one above the limits. */
export function check_size(width: number, height: number, name: string, max_pixels: number): void {
  if (width < 1 || height < 1) {
    throw invalid_image(
      `${name} is an image of ${width}×${height} pixels; it needs at least one pixel.`,
      name,
    );
  }
  if (width > MAX_SIDE || height > MAX_SIDE || width * height > max_pixels) {
    throw invalid_image(
      `${name} has ${width}×${height} pixels, more than the limit of ${max_pixels} pixels and ${MAX_SIDE} per side; scale it down first.`,
      name,
      { width, height, max_pixels },
    );
  }
}

export function truncated(name: string, format: string): VitMsnError {
  return invalid_image(`${name} is a truncated ${format} file; download or copy it again.`, name);
}

/** @throws VitMsnError INVALID_IMAGE for more than MAX_BYTES. */
export function check_byte_count(count: number, name: string): void {
  if (count <= MAX_BYTES) return;
  throw invalid_image(`${name} has ${count} bytes, more than the limit of ${MAX_BYTES} for one image.`, name);
}

export function invalid_image(
  message: string,
  file: string,
  details: Record<string, unknown> = {},
  cause?: unknown,
): VitMsnError {
  return new VitMsnError("INVALID_IMAGE", message, { cause, details: { file, ...details } });
}
