const END_OF_IMAGE = 0xd9;
export const START_OF_SCAN = 0xda;

/** A part of a JPEG file: its marker's second byte, and where its data lie, without their length. */
export interface JpegSegment {
  marker: number;
  start: number;
  end: number;
}

/**
 * The segments of a JPEG file's first image (ITU-T T.81, annex B), up to the one that ends it. What lies between them is skipped: compressed
 * pixels, and bytes that don't belong there, which decoders skip as well.
 */
export function* jpeg_segments(bytes: Uint8Array): Generator<JpegSegment> {
  for (let at = bytes.indexOf(0xff, 2); at >= 0 && at + 1 < bytes.length; at = bytes.indexOf(0xff, at)) {
    const marker = bytes[at + 1] as number;
    if (marker === 0xff) {
      at += 1; // a fill byte
    } else if (marker < 0xc0 || (marker >= 0xd0 && marker <= 0xd8)) {
      at += 2; // a byte of the pixels, a restart of their decoder, or nothing known
    } else {
      const length =
        marker === END_OF_IMAGE ? 0 : Math.max(2, (bytes[at + 2] ?? 0) * 256 + (bytes[at + 3] ?? 0));
      yield { marker, start: at + 4, end: at + 2 + length };
      if (marker === END_OF_IMAGE) return;
      at += 2 + length;
    }
  }
}

/** Whether a segment is a frame header (SOF), which holds the size. */
export function is_frame_header(marker: number): boolean {
  return marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
}

export function is_end(marker: number): boolean {
  return marker === END_OF_IMAGE;
}
