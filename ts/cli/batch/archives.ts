import { VitMsnError } from "../../index.ts";

interface Archive {
  what: string;
  advice: string;
  extension: RegExp;
  /** The first bytes, in Latin-1. */
  magic: string;
  /** Whether it can be read from a file of its extension. */
  is_readable?: boolean;
}

const unpack = "unpack it and pass the folder of its images";
const decompress = "decompress it and pass the .tar file";

/** Formats that may hold images but aren't supported. */
const ARCHIVES: readonly Archive[] = [
  {
    what: "a ZIP archive",
    advice: "pass it as a file whose name ends in .zip",
    extension: /\.zip$/i,
    magic: "PK\x03\x04",
    is_readable: true,
  },
  { what: "a 7-Zip archive", advice: unpack, extension: /\.7z$/i, magic: "7z\xbc\xaf\x27\x1c" },
  { what: "a RAR archive", advice: unpack, extension: /\.rar$/i, magic: "Rar!\x1a\x07" },
  {
    what: "compressed by bzip2",
    advice: `${decompress}: bunzip2 <file>`,
    extension: /\.(?:bz2|tbz2?)$/i,
    magic: "BZh",
  },
  {
    what: "compressed by xz",
    advice: `${decompress}: unxz <file>`,
    extension: /\.(?:xz|txz)$/i,
    magic: "\xfd7zXZ\0",
  },
  {
    what: "compressed by Zstandard",
    advice: `${decompress}: unzstd <file>`,
    extension: /\.(?:zst|tzst)$/i,
    magic: "\x28\xb5\x2f\xfd",
  },
  {
    what: "compressed by LZ4",
    advice: `${decompress}: unlz4 <file>`,
    extension: /\.lz4$/i,
    magic: "\x04\x22\x4d\x18",
  },
  {
    what: "a Parquet table",
    advice: "pass it as a file whose name ends in .parquet",
    extension: /\.parquet$/i,
    magic: "PAR1",
    is_readable: true,
  },
];

/** The error for a name that is that of an unsupported archive; undefined for other names. @param is_file whether it is a file's. */
export function unsupported_archive(path: string, is_file: boolean): VitMsnError | undefined {
  const archive = ARCHIVES.find(({ extension }) => extension.test(path));
  return archive === undefined || (is_file && archive.is_readable) ? undefined : unsupported(path, archive);
}

/** The same, judged by the file's first bytes. */
export function unsupported_content(name: string, bytes: Uint8Array): VitMsnError | undefined {
  const start = Buffer.from(bytes.subarray(0, 8)).toString("latin1");
  const archive = ARCHIVES.find(({ magic }) => start.startsWith(magic));
  return archive && unsupported(name, archive);
}

function unsupported(name: string, { what, advice }: Archive): VitMsnError {
  return new VitMsnError("UNSUPPORTED", `${name} is ${what}, which isn't supported here; ${advice}.`, {
    details: { file: name, found: what },
  });
}
