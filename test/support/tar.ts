/** Tar archives byte by byte, of kinds that no library writes any more. */

const BLOCK = 512;

export interface HeaderFields {
  type?: string;
  link?: string;
  /** The form of archive: the magic at byte 257. */
  magic?: string;
  /** Is changed before the sum is made. */
  edit?(header: Buffer): void;
}

export function tar_header(name: string | Buffer, size: number, fields: HeaderFields = {}): Buffer {
  const { type = "0", link = "", magic = "ustar\0" + "00", edit } = fields;
  const header = Buffer.alloc(BLOCK);
  Buffer.from(name).copy(header, 0, 0, 100);
  header.write("0000644\0", 100);
  header.write(`${size.toString(8).padStart(11, "0")}\0`, 124);
  header.write("00000000000\0", 136);
  header.write("        ", 148);
  header.write(type, 156, "latin1");
  header.write(link, 157);
  header.write(magic, 257, "latin1");
  edit?.(header);
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148);
  return header;
}

export function padded(bytes: Uint8Array): Buffer {
  return Buffer.concat([bytes, Buffer.alloc((BLOCK - (bytes.length % BLOCK)) % BLOCK)]);
}

export function tar_member(name: string | Buffer, bytes: Uint8Array, fields: HeaderFields = {}): Buffer {
  return Buffer.concat([tar_header(name, bytes.length, fields), padded(bytes)]);
}

export function tar_link(name: string, target: string, type: "1" | "2"): Buffer {
  return tar_header(name, 0, { type, link: target });
}

/** A pax header of the member that follows. */
export function pax_header(records: readonly (readonly [string, string | Buffer])[], type = "x"): Buffer {
  const lines = records.map(([key, value]) => {
    const rest = Buffer.concat([Buffer.from(` ${key}=`), Buffer.from(value), Buffer.from("\n")]);
    let length = rest.length;
    while (String(length).length + rest.length !== length) length = String(length).length + rest.length;
    return Buffer.concat([Buffer.from(String(length)), rest]);
  });
  return tar_member("pax", Buffer.concat(lines), { type });
}

export function tar_of(...parts: Buffer[]): Buffer {
  return Buffer.concat([...parts, Buffer.alloc(2 * BLOCK)]);
}
