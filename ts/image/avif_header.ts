import type { ImageHeader } from "./header.ts";

/** An AVIF file lists the sizes of all its items ("ispe" properties); the largest is the image or its canvas. */
export function read_avif_header(view: DataView): ImageHeader {
  const header: ImageHeader = { format: "AVIF", mime: "image/avif" };
  const end = Math.min(view.byteLength - 16, 65_536);
  for (let at = 8; at < end; at++) {
    const word = view.getUint32(at);
    // A reference of an item, of 14 bytes.
    if (word === 0x7072656d /* prem */ && view.getUint32(at - 4) === 14) header.premultiplied_at = at;
    if (word !== 0x69737065 /* ispe */) continue;
    const width = view.getUint32(at + 8);
    const height = view.getUint32(at + 12);
    if (width * height >= (header.width ?? 0) * (header.height ?? 0))
      Object.assign(header, { width, height });
  }
  return header;
}
