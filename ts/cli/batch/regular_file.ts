import { constants, type Stats } from "node:fs";
import { type FileHandle, open, stat } from "node:fs/promises";
import { DamagedArchive, encode_name } from "../../files/index.ts";
import { VitMsnError } from "../../index.ts";

/** Opens a file. Only regular files are allowed: others might never end, or wait forever. @param what as in "a tar shard". */
export async function open_regular(
  path: string,
  what: string,
): Promise<{ handle: FileHandle; size: number }> {
  const check = (found: Stats) => {
    if (found.isFile()) return found;
    const message = `${path} can't be read as ${what}: it is a device, pipe or socket, not a file.`;
    throw new VitMsnError("IO", message, { details: { file: path } });
  };
  const file = encode_name(path);
  check(await stat(file));
  const handle = await open(file, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0));
  try {
    return { handle, size: check(await handle.stat()).size };
  } catch (error) {
    await handle.close();
    throw error;
  }
}

/** @throws DamagedArchive if the file ends before. */
export async function read_exactly(handle: FileHandle, offset: number, length: number): Promise<Buffer> {
  const bytes = Buffer.allocUnsafe(length);
  for (let done = 0; done < length; ) {
    const { bytesRead } = await handle.read(bytes, done, length - done, offset + done);
    if (bytesRead === 0) throw new DamagedArchive("ends too early");
    done += bytesRead;
  }
  return bytes;
}
