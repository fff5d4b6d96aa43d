import { VitMsnError } from "../errors.ts";
import { EXTENSIONS } from "./formats.ts";
import { invalid_image } from "./limits.ts";
import { brands, has, latin1 } from "./signatures.ts";

/** The formats that are decoded in every runtime. */
const FORMAT_NAMES = Object.keys(EXTENSIONS)
  .filter((format) => format !== "TIFF")
  .join(", ");
/** What an image can be converted to without loss. */
const CONVERT = "convert it to PNG";

/** A kind of file: how to recognise it, its name, and what to do about it. */
interface Kind {
  is(bytes: Uint8Array): boolean;
  found: string;
  advice: string;
}

/** Images of formats that aren't decoded. */
const OTHER_IMAGES: readonly Kind[] = [
  {
    is: (b) => brands(b).some((x) => /^(hei|hev)/.test(x)),
    found: "a HEIC image",
    advice: "convert it to JPEG or PNG",
  },
  { is: (b) => brands(b).some((x) => /^(mif|msf)1$/.test(x)), found: "a HEIF image", advice: CONVERT },
  { is: (b) => has(b, 0, "\xff\x0a") || has(b, 4, "JXL \r\n"), found: "a JPEG XL image", advice: CONVERT },
  {
    is: (b) => has(b, 4, "jP  \r\n") || has(b, 0, "\xff\x4f\xff\x51"),
    found: "a JPEG 2000 image",
    advice: CONVERT,
  },
  { is: is_icon, found: "a Windows icon or cursor", advice: CONVERT },
  { is: is_targa, found: "a TGA image", advice: CONVERT },
  { is: (b) => has(b, 0, "DDS "), found: "a DDS texture", advice: CONVERT },
  { is: (b) => has(b, 0, "\x76\x2f\x31\x01"), found: "an OpenEXR image", advice: CONVERT },
  {
    is: (b) => has(b, 0, "#?RADIANCE") || has(b, 0, "#?RGBE"),
    found: "a Radiance HDR image",
    advice: CONVERT,
  },
  { is: (b) => has(b, 0, "qoif"), found: "a QOI image", advice: CONVERT },
  { is: (b) => has(b, 0, "8BPS"), found: "a Photoshop file", advice: "export it as PNG" },
  { is: (b) => /^P([Ff]|7)\s/.test(latin1(b, 0, 3)), found: "a PFM or PAM image", advice: CONVERT },
  { is: (b) => has(b, 0, "icns"), found: "a macOS icon", advice: CONVERT },
  {
    is: (b) => has(b, 0, "\x0a\x05\x01") || has(b, 0, "\x0a\x03\x01"),
    found: "a PCX image",
    advice: CONVERT,
  },
  {
    is: (b) => has(b, 0, "FUJIFILMCCD-RAW") || has(b, 0, "IIRO") || has(b, 0, "IIU\0"),
    found: "a camera's raw file",
    advice: "export it as JPEG or PNG",
  },
  { is: (b) => has(b, 0, "\x01\xda"), found: "an SGI image", advice: CONVERT },
  { is: (b) => has(b, 0, "SIMPLE  ="), found: "a FITS image", advice: CONVERT },
  { is: (b) => has(b, 128, "DICM"), found: "a DICOM image", advice: CONVERT },
  {
    is: (b) => has(b, 0, "%!PS") || has(b, 0, "\xc5\xd0\xd3\xc6"),
    found: "a PostScript drawing",
    advice: CONVERT,
  },
  // A drawing may name files and URLs that its reader would fetch.
  { is: is_svg, found: "an SVG drawing", advice: CONVERT },
];

/** Files that aren't images. */
const NO_IMAGES: readonly Kind[] = [
  {
    is: (b) => has(b, 4, "ftyp") || has(b, 4, "moov") || has(b, 4, "mdat"),
    found: "a video (MP4 or QuickTime)",
    advice: "extract a frame",
  },
  {
    is: (b) => has(b, 0, "\x1a\x45\xdf\xa3"),
    found: "a video (WebM or Matroska)",
    advice: "extract a frame",
  },
  { is: (b) => has(b, 0, "RIFF") && has(b, 8, "AVI "), found: "a video (AVI)", advice: "extract a frame" },
  {
    is: (b) => has(b, 0, "PK\x03\x04") || has(b, 0, "PK\x05\x06"),
    found: "a ZIP archive",
    advice: "unpack it",
  },
  { is: (b) => has(b, 0, "PAR1"), found: "a Parquet table", advice: "write its images to files" },
  { is: (b) => has(b, 0, "\x1f\x8b"), found: "compressed by gzip", advice: "unpack it" },
  { is: (b) => has(b, 0, "BZh"), found: "compressed by bzip2", advice: "unpack it" },
  { is: (b) => has(b, 0, "\xfd7zXZ\0"), found: "compressed by xz", advice: "unpack it" },
  { is: (b) => has(b, 0, "\x28\xb5\x2f\xfd"), found: "compressed by Zstandard", advice: "unpack it" },
  { is: (b) => has(b, 0, "7z\xbc\xaf\x27\x1c"), found: "a 7z archive", advice: "unpack it" },
  { is: (b) => has(b, 0, "Rar!\x1a\x07"), found: "a RAR archive", advice: "unpack it" },
  {
    is: (b) => has(b, 257, "ustar"),
    found: "a tar archive",
    advice: "unpack it, or name it .tar on the command line",
  },
  { is: (b) => has(b, 0, "\x93NUMPY"), found: "a NumPy array", advice: "pass its pixels to new RawImage()" },
  { is: (b) => has(b, 0, "\x89HDF\r\n"), found: "an HDF5 file", advice: "write its images to files" },
  { is: (b) => has(b, 0, "SQLite format 3\0"), found: "an SQLite database", advice: "check the path or URL" },
  { is: (b) => has(b, 0, "%PDF"), found: "a PDF document", advice: "export its pages as PNG" },
  {
    is: (b) => text_start(b).startsWith("version https://git-lfs"),
    found: "a Git LFS pointer",
    advice: "fetch the file itself by `git lfs pull`",
  },
  {
    is: (b) => /^<(!doctype html|html|head|body)/i.test(text_start(b)),
    found: "an HTML page",
    advice: "check the path or URL",
  },
  {
    is: (b) => text_start(b).startsWith("<"),
    found: "an XML or HTML document",
    advice: "check the path or URL",
  },
  {
    is: (b) => /^[{[]/.test(text_start(b)) && is_text(text_start(b)),
    found: "JSON or text",
    advice: "check the path or URL",
  },
];

/** The error for bytes of no known format: what they are, where that can be recognised, and what to do. */
export function not_an_image(bytes: Uint8Array, name: string): VitMsnError {
  const image = OTHER_IMAGES.find(({ is }) => is(bytes));
  if (image !== undefined) {
    return new VitMsnError(
      "UNSUPPORTED",
      `${name} is ${image.found}, which isn't supported; ${image.advice}.`,
      {
        details: { file: name, found: image.found },
      },
    );
  }
  const { found, advice } = NO_IMAGES.find(({ is }) => is(bytes)) ?? unknown_kind(bytes);
  return invalid_image(`${name} is ${found}, not an image (${FORMAT_NAMES}); ${advice}.`, name, { found });
}

function unknown_kind(bytes: Uint8Array): { found: string; advice: string } {
  const advice = "check the path or URL";
  const text = text_start(bytes);
  if (bytes.length === 0) return { found: "empty (0 bytes)", advice };
  // Neither text nor bytes are quoted: a client that may name a file isn't always allowed to read it.
  return { found: is_text(text) ? "text" : "data of an unknown kind", advice };
}

/**
 * A directory of icons, or of cursors. A TGA image may begin like the latter: its first entry's fourth byte must be zero, and
 * its data must begin after the directory.
 */
function is_icon(bytes: Uint8Array): boolean {
  if (has(bytes, 0, "\0\0\x01\0")) return true;
  if (!has(bytes, 0, "\0\0\x02\0") || bytes.length < 22) return false;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const [count, offset] = [view.getUint16(4, true), view.getUint32(18, true)];
  return count > 0 && bytes[9] === 0 && offset >= 6 + 16 * count && offset < bytes.length;
}

/** TGA has no signature: a colour map's kind, one of six kinds of image, and a depth that fits. */
function is_targa(bytes: Uint8Array): boolean {
  const [, map = 9, kind = 0] = bytes;
  const depth = bytes[16] ?? 0;
  if (has(bytes, bytes.length - 18, "TRUEVISION-XFILE.\0")) return true;
  const has_size = bytes.length > 18 && (bytes[12] || bytes[13]) && (bytes[14] || bytes[15]);
  return (
    Boolean(has_size) &&
    map <= 1 &&
    [1, 2, 3, 9, 10, 11].includes(kind) &&
    [8, 15, 16, 24, 32].includes(depth)
  );
}

function is_svg(bytes: Uint8Array): boolean {
  const text = text_start(bytes);
  return /^<(\?xml|!--|!doctype svg|svg)/i.test(text) && /<svg[\s>]/i.test(text);
}

/** The file's beginning as text; UTF-16 by its byte order mark, else UTF-8. */
function text_start(bytes: Uint8Array): string {
  const encoding = has(bytes, 0, "\xff\xfe") ? "utf-16le" : has(bytes, 0, "\xfe\xff") ? "utf-16be" : "utf-8";
  return new TextDecoder(encoding).decode(bytes.subarray(0, 2048)).trim();
}

/** Whether it consists of characters only; the last may be incomplete. */
function is_text(text: string): boolean {
  return /^[\s\P{Cc}]+$/u.test(text) && !text.slice(0, -1).includes("\ufffd");
}
