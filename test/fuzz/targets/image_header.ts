import { MAX_PIXELS, read_header } from "../../../ts/image/header.ts";
import { take_any_orientation } from "../../../ts/image/orientation.ts";

export const dictionary = [
  Uint8Array.of(0xff, 0xd8, 0xff),
  Uint8Array.of(0xff, 0xe1),
  Uint8Array.of(0xff, 0xc0, 0, 17, 8),
  "Exif\0\0",
  "II*\0",
  "MM\0*",
  "\x89PNG\r\n\x1a\n",
  "IHDR",
  "eXIf",
  "tRNS",
  "iTXt",
  "GIF89a",
  "RIFF",
  "WEBPVP8X",
  "VP8L",
  "EXIF",
  "XMP ",
  "ftypavif",
  "meta",
  "iprp",
  "ispe",
  "http://ns.adobe.com/xap/1.0/\0",
  'tiff:Orientation="6"',
];

export function fuzz(bytes: Uint8Array): void {
  const { format } = read_header(bytes, "image", MAX_PIXELS);
  take_any_orientation(bytes, format);
}
