import binaryen from "binaryen";
import { describe, expect, test } from "vitest";
import { read_file } from "../support/files.ts";

/** An expression of WebAssembly's text format: the operator, its immediates and operands. */
type Expression = (string | Expression)[];

function parse(text: string): Expression {
  const stack: Expression[] = [[]];
  for (const [token] of text.matchAll(/[()]|[^\s()]+/g)) {
    if (token === "(") stack.push([]);
    else if (token === ")") {
      const done = stack.pop() as Expression;
      (stack.at(-1) as Expression).push(done);
    } else (stack.at(-1) as Expression).push(token);
  }
  return stack[0]?.[0] as Expression;
}

const is_expression = (part: string | Expression): part is Expression => typeof part !== "string";

/** All expressions with one of these operators, operands first: in the order in which they are evaluated. */
function find(expression: Expression, ...operators: string[]): Expression[] {
  const found = expression.filter(is_expression).flatMap((part) => find(part, ...operators));
  return operators.includes(expression[0] as string) ? [...found, expression] : found;
}

/** The loops of a module that multiply tiles of 6 × 16, four inputs an iteration. */
async function tile_loops(level: string): Promise<Expression[]> {
  const module = binaryen.readBinary(new Uint8Array(await read_file(`dist/vit_msn_${level}.wasm`)));
  const bodies = Array.from({ length: module.getNumFunctions() }, (_, i) => {
    const { body } = binaryen.getFunctionInfo(module.getFunctionByIndex(i));
    return body === 0 ? "" : binaryen.emitText(body);
  });
  module.dispose();
  const loops = bodies
    .filter((text) => text.includes("relaxed_madd"))
    .flatMap((text) => find(parse(text), "loop"));
  const is_inner = (loop: Expression) =>
    loop
      .slice(1)
      .filter(is_expression)
      .every((part) => find(part, "loop").length === 0);
  return loops.filter((loop) => is_inner(loop) && find(loop, "f32x4.relaxed_madd").length >= INPUTS * SUMS);
}

const ROWS = 6;
/** Vectors of a tile's row: two panels of eight columns. */
const VECTORS = 4;
const SUMS = ROWS * VECTORS;
/** Inputs in an iteration of the loop. */
const INPUTS = 4;

function offset_of(load: Expression): number {
  const immediate = load.find((part) => !is_expression(part) && part.startsWith("offset="));
  return Number((immediate as string | undefined)?.slice("offset=".length) ?? 0);
}

/** The local that a load's address is, or that is set to it on the way. */
function base_of(load: Expression): unknown {
  const address = load.at(-1) as Expression;
  expect(["local.get", "local.tee"], JSON.stringify(address)).toContain(address[0]);
  return address[1];
}

// V8 joins two vectors into one of 256 bits only if they are loaded from one base at offsets 16 apart; and the tile fits
// its 15 free registers only if nothing else is live. A compiler that breaks the pattern would halve the speed unnoticed.
describe.each(["relaxed_wide", "relaxed_wide_threads"])(
  "the tile's loops in vit_msn_%s.wasm",
  async (level) => {
    const loops = await tile_loops(level);

    test("are there: one for products, one that adds them in several places", () => {
      expect(loops.length).toBe(2);
    });

    test.each(loops.map((loop, i) => [i, loop] as const))("%i: weights are loaded in pairs", (_, loop) => {
      const loads = find(loop, "v128.load");
      expect(loads.length).toBe(INPUTS * VECTORS);
      for (const base of new Set(loads.map(base_of))) {
        const group = loads.filter((load) => base_of(load) === base);
        const found = group.map(offset_of).sort((a, b) => a - b);
        expect(found).toEqual(found.map((_, i) => 16 * i));
        expect(found.length % 2).toBe(0);
      }
    });

    test.each(loops.map((loop, i) => [i, loop] as const))(
      "%i: only sums, weights and a value of A are live",
      (_, loop) => {
        expect(find(loop, "v128.store")).toEqual([]);
        const sums = find(loop, "local.set", "local.tee").filter(
          ([, , value]) => value?.[0] === "f32x4.relaxed_madd",
        );
        expect(sums.length).toBe(INPUTS * SUMS);
        expect(new Set(sums.map(([, name]) => name)).size).toBe(SUMS);
        const others = find(loop, "local.set", "local.tee").filter(([, , value]) =>
          /^v128\./.test(String(value?.[0])),
        );
        expect(new Set(others.map(([, name]) => name)).size).toBeLessThanOrEqual(VECTORS + 1);
        // A row's products follow the load of its value: the last rows' values aren't loaded ahead.
        const order = find(loop, "v128.load32_splat", "f32x4.relaxed_madd").map(([operator]) => operator);
        const row = ["v128.load32_splat", ...Array<string>(VECTORS).fill("f32x4.relaxed_madd")];
        expect(order).toEqual(Array.from({ length: INPUTS * ROWS }, () => row).flat());
      },
    );
  },
);
