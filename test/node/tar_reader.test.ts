import { constants, gunzipSync, gzipSync } from "node:zlib";
import { describe, expect, test } from "vitest";
import { gunzip } from "../../ts/cli/batch/gunzip.ts";
import { DamagedArchive, tar_members } from "../../ts/files/tar_reader.ts";
import { padded, pax_header, tar_header, tar_link, tar_member, tar_of } from "../support/tar.ts";

const text = (value: string) => Buffer.from(value);

/** The bytes in pieces, so that headers and content begin anywhere in one. */
async function* in_pieces(bytes: Uint8Array, size: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

async function members(bytes: Uint8Array, size = 700) {
  const found: { name: string; kind: string; target: string; content: string }[] = [];
  for await (const { name, kind, target, read } of tar_members(in_pieces(bytes, size)))
    found.push({
      name,
      kind,
      target,
      content: kind === "file" ? Buffer.from(await read()).toString("latin1") : "",
    });
  return found;
}

const files = async (bytes: Uint8Array) =>
  (await members(bytes)).filter(({ kind }) => kind === "file").map(({ name, content }) => [name, content]);

describe("the forms of archives", () => {
  test.each([1, 511, 512, 513, 100_000])("members are read whole from pieces of %d bytes", async (size) => {
    const tar = tar_of(
      tar_member("a", text("one")),
      tar_member("b", text("x".repeat(1024))),
      tar_member("c", text("")),
    );
    expect((await members(tar, size)).map(({ content }) => content)).toEqual(["one", "x".repeat(1024), ""]);
  });

  test("v7, which has no magic, and whose folders end in a slash", async () => {
    const tar = tar_of(
      tar_header("folder/", 0, { magic: "", type: "\0" }),
      tar_member("folder/a", text("one"), { magic: "", type: "\0" }),
    );
    expect((await members(tar)).map(({ name, kind }) => [name, kind])).toEqual([
      ["folder/", "folder"],
      ["folder/a", "file"],
    ]);
  });

  test("a volume's label isn't a member", async () => {
    const tar = tar_of(
      tar_header("label.png", 0, { type: "V", magic: "ustar  \0" }),
      tar_member("a", text("one")),
    );
    expect((await members(tar)).map(({ name }) => name)).toEqual(["a"]);
  });

  test("long names: ustar's prefix, GNU's members and pax headers, in this order of precedence", async () => {
    const prefix = { edit: (header: Buffer) => header.write("deep/er", 345) };
    const long = "n".repeat(300);
    const tar = tar_of(
      tar_member("a", text("1"), prefix),
      tar_member("././@LongLink", text(`${long}\0`), { type: "L", magic: "ustar  \0" }),
      tar_member("cut", text("2"), { magic: "ustar  \0" }),
      pax_header([["path", "päx"]]),
      tar_member("other", text("3")),
      tar_member("b", text("4")),
    );
    expect(await files(tar)).toEqual([
      ["deep/er/a", "1"],
      [long, "2"],
      ["päx", "3"],
      ["b", "4"],
    ]);
  });

  test("names that aren't UTF-8 keep their bytes", async () => {
    const tar = tar_of(tar_member(Buffer.from("caf\xe9.png", "latin1"), text("1")));
    expect(await files(tar)).toEqual([["caf\udce9.png", "1"]]);
  });

  test("sizes in pax headers and in GNU's binary form", async () => {
    const binary = (header: Buffer) => {
      header.fill(0, 124, 136);
      header[124] = 0x80;
      header[135] = 3;
    };
    const tar = tar_of(
      pax_header([["size", "3"]]),
      Buffer.concat([tar_header("a", 0), padded(text("one"))]),
      Buffer.concat([tar_header("b", 0, { edit: binary }), padded(text("two"))]),
    );
    expect(await files(tar)).toEqual([
      ["a", "one"],
      ["b", "two"],
    ]);
  });

  test("links have a target and no content, whatever size they claim", async () => {
    const tar = tar_of(
      tar_member("a", text("one")),
      tar_header("b", 3, { type: "1", link: "a" }),
      tar_link("c", "a", "2"),
      tar_member("d", text("two")),
    );
    expect((await members(tar)).map(({ kind, target }) => [kind, target])).toEqual([
      ["file", ""],
      ["hard link", "a"],
      ["symbolic link", "a"],
      ["file", ""],
    ]);
  });

  test("archives one after the other, without an end, and of unknown types", async () => {
    const [a, b] = [tar_member("a", text("1")), tar_member("b", text("2"), { type: "Q" })];
    const all = [
      ["a", "1"],
      ["b", "2"],
    ];
    expect(await files(Buffer.concat([tar_of(a), tar_of(b)]))).toEqual(all);
    expect(await files(Buffer.concat([a, b]))).toEqual(all);
  });
});

test("members that aren't read are skipped, where the source can, without reading them", async () => {
  const large = Buffer.alloc(1_000_000, "x");
  const tar = tar_of(tar_member("a", large), tar_member("b", text("wanted")), tar_member("c", large));
  let [at, read] = [0, 0];
  const source = {
    next: async () => {
      const value = tar.subarray(at, at + 512);
      at += value.length;
      read += value.length;
      return value.length === 0 ? { done: true as const, value: undefined } : { value };
    },
    skip: async (count: number) => {
      const skipped = Math.min(count, tar.length - at);
      at += skipped;
      return skipped;
    },
  };
  const names: string[] = [];
  for await (const member of tar_members(source)) {
    names.push(member.name);
    if (member.name === "b") expect(Buffer.from(await member.read()).toString()).toBe("wanted");
  }
  expect(names).toEqual(["a", "b", "c"]);
  expect(read).toBeLessThan(10 * 512);
});

test("an archive cut off within a member that is skipped is damaged", async () => {
  const tar = tar_member("a", Buffer.alloc(10_000)).subarray(0, 5000);
  const parts = [tar];
  const source = {
    next: async () => {
      const value = parts.pop();
      return value === undefined ? { done: true as const, value: undefined } : { value };
    },
    skip: async () => 0,
  };
  const all = async () => {
    for await (const _ of tar_members(source));
  };
  await expect(all()).rejects.toMatchObject({ is_cut: true });
});

describe("what follows the end marker", () => {
  const first = tar_member("a", text("one"));
  const second = tar_member("b", text("two"));
  const marker = Buffer.alloc(1024);

  test.each<[string, Buffer]>([
    ["noise of whole blocks", Buffer.alloc(2048, 37)],
    ["text of less than a block", text("appended by an uploader\n")],
    ["zeros and noise", Buffer.concat([Buffer.alloc(700), Buffer.alloc(300, 37)])],
  ])("%s is ignored, as by GNU tar", async (_, more) => {
    expect((await files(Buffer.concat([first, marker, more]))).map(([name]) => name)).toEqual(["a"]);
  });

  test("another archive is read, too", async () => {
    const all = await files(Buffer.concat([first, marker, second, marker, text("x")]));
    expect(all.map(([name]) => name)).toEqual(["a", "b"]);
  });
});

describe("sparse members", () => {
  // "ab", a hole of 3, "c", a hole of 2.
  const whole = "ab\0\0\0c\0\0";
  const stored = text("abc");

  test("GNU's old form, with more of the map in blocks behind the header", async () => {
    const octal = (value: number) => `${value.toString(8).padStart(11, "0")}\0`;
    const many = Array.from({ length: 30 }, (_, i) => [2 * i, 1] as const);
    const entry = (block: Buffer, at: number, [offset, length]: readonly [number, number]) => {
      block.write(octal(offset), at);
      block.write(octal(length), at + 12);
    };
    const extension = Buffer.alloc(1024);
    for (const [i, one] of many.slice(4).entries())
      entry(extension, i < 21 ? 24 * i : 512 + 24 * (i - 21), one);
    extension[504] = 1;
    const edit = (header: Buffer) => {
      for (const [i, one] of many.slice(0, 4).entries()) entry(header, 386 + 24 * i, one);
      header[482] = 1;
      header.write(octal(60), 483);
    };
    const content = text("x".repeat(30));
    const header = tar_header("a", content.length, { type: "S", magic: "ustar  \0", edit });
    const tar = tar_of(Buffer.concat([header, extension, padded(content)]), tar_member("b", text("1")));
    expect(await files(tar)).toEqual([
      ["a", "x\0".repeat(30)],
      ["b", "1"],
    ]);
  });

  test.each<[string, [string, string][], Buffer]>([
    [
      "0.0",
      [
        ["GNU.sparse.size", "8"],
        ["GNU.sparse.numblocks", "2"],
        ["GNU.sparse.offset", "0"],
        ["GNU.sparse.numbytes", "2"],
        ["GNU.sparse.offset", "5"],
        ["GNU.sparse.numbytes", "1"],
      ],
      stored,
    ],
    [
      "0.1",
      [
        ["GNU.sparse.name", "a"],
        ["GNU.sparse.size", "8"],
        ["GNU.sparse.map", "0,2,5,1"],
      ],
      stored,
    ],
    [
      "1.0",
      [
        ["GNU.sparse.major", "1"],
        ["GNU.sparse.minor", "0"],
        ["GNU.sparse.name", "a"],
        ["GNU.sparse.realsize", "8"],
      ],
      Buffer.concat([padded(text("2\n0\n2\n5\n1\n")), stored]),
    ],
  ])("GNU's form %s in pax headers", async (form, records, content) => {
    const name = form === "0.0" ? "a" : "GNUSparseFile.1/a";
    const tar = tar_of(pax_header(records), tar_member(name, content), tar_member("b", text("1")));
    expect(await files(tar)).toEqual([
      ["a", whole],
      ["b", "1"],
    ]);
  });

  test("a map that leads out of the member is an error", async () => {
    const records = [
      ["GNU.sparse.size", "8"],
      ["GNU.sparse.map", "7,2"],
    ] as const;
    const tar = tar_of(pax_header(records), tar_member("a", stored));
    await expect(members(tar)).rejects.toThrow(/map of a sparse member is damaged/);
  });
});

describe("damaged archives are errors", () => {
  const sound = tar_member("a", text("one"));

  test.each<[string, Buffer, RegExp]>([
    ["text", text("no archive"), /isn't a tar archive/],
    ["noise", Buffer.alloc(4096, 37), /isn't a tar archive/],
    ["noise behind a member", Buffer.concat([sound, Buffer.alloc(512, 37)]), /no valid header at byte 1024/],
    ["a size below zero", tar_of(pax_header([["size", "-5"]]), sound), /"-5" where a number is expected/],
    [
      "a size above all numbers",
      tar_of(pax_header([["size", "9".repeat(20)]]), sound),
      /where a number is expected/,
    ],
    ["a pax header of 3 GB", tar_header("x", 3e9, { type: "x" }), /3000000000 bytes is more than the limit/],
    [
      "a pax header that lies",
      tar_of(tar_member("x", text("99 path=a\n"), { type: "x" }), sound),
      /pax header is damaged/,
    ],
  ])("%s", async (_, bytes, message) => {
    const error = await members(bytes).catch((error: unknown) => error);
    expect(error).toBeInstanceOf(DamagedArchive);
    expect((error as DamagedArchive).message).toMatch(message);
    expect((error as DamagedArchive).is_cut).toBe(false);
  });

  test("a truncation is a different error, wherever it is", async () => {
    for (const length of [600, 1000]) {
      const error = await members(sound.subarray(0, length)).catch((error: unknown) => error);
      expect(error).toMatchObject({ is_cut: true });
    }
  });
});

test("a global pax header of megabytes is read once, not for each member", async () => {
  const global = pax_header(
    Array.from({ length: 100_000 }, (_, i) => [`key${i}`, "value"] as const),
    "g",
  );
  const parsed = Buffer.prototype.toString;
  let calls = 0;
  Buffer.prototype.toString = function (this: Buffer, ...args: Parameters<typeof parsed>) {
    calls++;
    return parsed.apply(this, args);
  };
  try {
    const many = Array.from({ length: 200 }, (_, i) =>
      Buffer.concat([pax_header([["path", `${i}`]]), tar_header("x", 0)]),
    );
    expect(await members(tar_of(global, ...many))).toHaveLength(200);
  } finally {
    Buffer.prototype.toString = parsed;
  }
  // Some for each record, and some for each member.
  expect(calls).toBeLessThan(300_000);
});

test.each([1, 20, 100, 100_000])("what follows gzip data is ignored, in pieces of %d bytes", async (size) => {
  // Tapes and some file systems pad archives with zeros.
  const packed = Buffer.concat([gzipSync(text("data")), Buffer.alloc(1500)]);
  const parts: Uint8Array[] = [];
  for await (const part of gunzip(in_pieces(packed, size))) parts.push(part);
  expect(Buffer.concat(parts).toString()).toBe("data");
});

test("gunzip gives all that precedes a truncation, each time, and then the error", async () => {
  const noise = Buffer.from(Array.from({ length: 300_000 }, (_, i) => (i * i * 31 + (i >> 3)) % 251));
  const packed = gzipSync(noise);
  const cut = packed.subarray(0, Math.floor(packed.length * 0.75));
  const read = async (bytes: Uint8Array, size: number) => {
    const parts: Uint8Array[] = [];
    const error = await (async () => {
      for await (const part of gunzip(in_pieces(bytes, size))) parts.push(part);
    })().catch((error: Error) => error);
    return { bytes: Buffer.concat(parts), error };
  };
  const whole = await read(packed, 1000);
  expect(whole).toEqual({ bytes: noise, error: undefined });
  const readable = gunzipSync(cut, { finishFlush: constants.Z_SYNC_FLUSH });
  for (const size of [10, 1000, 65_536, 1e6]) {
    const { bytes, error } = await read(cut, size);
    expect(error?.message).toBe("unexpected end of file");
    expect(bytes.equals(readable)).toBe(true);
  }
});
