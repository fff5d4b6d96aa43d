import { prepare_avif } from "../../../ts/image/avif.ts";
import { decode_file } from "../../../ts/image/decoding.ts";
import { read_tiff_header } from "../../../ts/image/tiff.ts";

const MAX_PIXELS = 100_000;

export const dictionary = [
  Uint8Array.of(0xff, 0xd8, 0xff),
  Uint8Array.of(0xff, 0xe1),
  Uint8Array.of(0xff, 0xc0, 0, 17, 8),
  "Exif\0\0",
  "II*\0",
  "MM\0*",
  "\x89PNG\r\n\x1a\n",
  "IHDR",
  "IDAT",
  "IEND",
  "PLTE",
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
  "irot",
  "ipma",
  "colrnclx",
  "av1C",
  "http://ns.adobe.com/xap/1.0/\0",
  "BM",
  "P6\n2 2\n255\n",
  "II+\0",
  'tiff:Orientation="6"',
];

/** All that is read before another decoder gets the file, and the formats that no other decoder reads. */
export async function fuzz(bytes: Uint8Array): Promise<void> {
  const options = { name: "image", max_pixels: MAX_PIXELS };
  await decode_file(bytes, options, ["PNG", "GIF", "BMP", "PNM"], async (file, { format }) => {
    if (format === "AVIF") prepare_avif(file.bytes);
    if (format === "TIFF") read_tiff_header(file.bytes, "image", MAX_PIXELS);
    return { data: new Uint8Array(3), width: 1, height: 1, channels: 3 };
  });
}
