import { describe, expect, test } from "vitest";
import { read_json } from "../../ts/loading/json.ts";
import { open_source } from "../../ts/loading/source.ts";
import { expect_error } from "../support/errors.ts";
import { ascii } from "../support/torch_archive.ts";

const read = async (content: string | Uint8Array) =>
  read_json(
    await open_source({ "config.json": typeof content === "string" ? ascii(content) : content }),
    "config.json",
  );

test("an object is read, whatever it holds", async () => {
  const text = ' {"a":[1,-2.5e-3,{}, []],"b":"\\u00e9\\n\\"","c":null,"d":true,"":false}\n';
  expect(await read(text)).toEqual(JSON.parse(text));
  expect(await read(`\ufeff{"a":1}`)).toEqual({ a: 1 });
});

test("the numbers that only Python writes are read", async () => {
  expect(await read('{"a": NaN, "b": [Infinity, -Infinity], "c": "NaN"}')).toEqual({
    a: Number.NaN,
    b: [Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY],
    c: "NaN",
  });
});

test("a key given twice has its last value, in any order of containers", async () => {
  expect(await read('{"a": {"b": 1, "b": [2, {"c": []}]}, "a": {"d": [[], {}]}}')).toEqual({
    a: { d: [[], {}] },
  });
});

test("a file that isn't there is undefined", async () => {
  expect(await read_json(await open_source({}), "config.json")).toBeUndefined();
});

test("keys of JavaScript's own can't change a prototype", async () => {
  const value = (await read(
    '{"__proto__":{"polluted":1},"a":{"\\u005f_proto__":{"polluted":1}},"constructor":2}',
  )) as object;
  expect(Object.keys(value)).toEqual(["a", "constructor"]);
  const copy = Object.assign({}, value, (value as { a: object }).a) as Record<string, unknown>;
  expect(copy.polluted).toBeUndefined();
  expect(({} as Record<string, unknown>).polluted).toBeUndefined();
});

describe("broken text is refused with its position", () => {
  test.each<[string, string | Uint8Array, RegExp]>([
    ["nothing", "", /a value is expected at line 1, column 1 .*cut off/],
    ["cut off", '{"a": [1, 2', /a comma or \] is expected at line 1, column 12 .*cut off/],
    ["a string left open", '{"a": "b', /a string isn't closed/],
    ["a line break in a string", '{"a": "b\n"}', /a string isn't closed at line 1, column 9/],
    ["a comment", '{\n  // size\n  "a": 1}', /a key in double quotes is expected at line 2, column 3/],
    ["a trailing comma", '{"a": 1,}', /a key in double quotes is expected/],
    ["a trailing comma in a list", '{"a": [1,]}', /a value is expected/],
    ["a missing colon", '{"a" 1}', /a colon is expected/],
    ["single quotes", "{'a': 1}", /a key in double quotes/],
    ["a signed NaN", '{"a": -NaN}', /a value is expected/],
    ["NaN in small letters", '{"a": nan}', /a value is expected/],
    ["a signed Infinity", '{"a": +Infinity}', /a value is expected/],
    ["a word that only begins so", '{"a": Infinityx}', /a value is expected/],
    ["a bad escape", '{"a": "\\x41"}', /unknown escape/],
    ["two values", '{"a": 1} {"b": 2}', /its end is expected/],
    ["a leading zero", '{"a": 012}', /a value is expected/],
    ["an endless number", `{"a": ${"1".repeat(100_000)}}`, /a comma or } is expected/],
    ["a list", "[1]", /must hold a JSON object/],
    ["null", "null", /must hold a JSON object/],
    ["a web page", "<!doctype html><html></html>", /web page/],
    ["UTF-16", new Uint8Array([0xff, 0xfe, 0x7b, 0, 0x7d, 0]), /isn't UTF-8/],
    ["deep nesting", '{"a":'.repeat(100_000), /nested deeper than 64/],
    ["too many values", `{"a":[${"0,".repeat(2_100_000)}0]}`, /more than 2000000 values/],
  ])("%s", async (_, content, message) => {
    const error = await expect_error(read(content), "INVALID_CONFIG", message);
    expect(error.message).toContain("config.json");
  });

  test("a file larger than any config", async () => {
    await expect_error(
      read(new Uint8Array(33 * 1024 * 1024)),
      "INVALID_CONFIG",
      /more than the limit of 33554432/,
    );
  });
});
