import { readFile } from "node:fs/promises";
import binaryen from "binaryen";
import { beforeAll, describe, expect, test } from "vitest";

// The inner loops of the compiled engine: an update of the compiler that changes them can halve the speed and break
// nothing else.

type Expression = string | readonly Expression[];

/** Parses one expression of WebAssembly's text format without comments and strings. */
function parse(text: string): Expression {
  const root: Expression[] = [];
  const open = [root];
  for (const [token] of text.matchAll(/[()]|[^\s()]+/g)) {
    const innermost = open.at(-1) as Expression[];
    if (token === "(") {
      const list: Expression[] = [];
      innermost.push(list);
      open.push(list);
    } else if (token === ")") open.pop();
    else innermost.push(token);
  }
  return root[0] as Expression;
}

const head = (expression: Expression) => (typeof expression === "string" ? expression : expression[0]);

/** Every expression inside another, in the order of evaluation: operands first. */
function* evaluated(expression: Expression): Generator<readonly Expression[]> {
  if (typeof expression === "string") return;
  for (const part of expression) yield* evaluated(part);
  yield expression;
}

const count = (expression: Expression, name: string) =>
  [...evaluated(expression)].filter((inner) => inner[0] === name).length;

/** The innermost loops of a module that contain an instruction. */
async function loops_with(level: string, instruction: string): Promise<Expression[]> {
  const module = binaryen.readBinary(await readFile(`dist/vit_msn_${level}.wasm`));
  const loops: Expression[] = [];
  for (let i = 0; i < module.getNumFunctions(); i++) {
    const { body, module: imported } = binaryen.getFunctionInfo(module.getFunctionByIndex(i));
    if (imported !== "" || body === 0) continue;
    const text = binaryen.emitText(body);
    if (!text.includes(instruction)) continue;
    const found = [...evaluated(parse(text))].filter(
      (inner) => inner[0] === "loop" && count(inner, instruction) > 0 && count(inner, "loop") === 1,
    );
    loops.push(...found);
  }
  module.dispose();
  return loops;
}

/** Whether an expression's value is a vector: loads of vectors and the results of their instructions. */
function is_vector(expression: Expression, vectors: ReadonlySet<string>): boolean {
  const name = head(expression) as string;
  if (/^local\.(get|tee)$/.test(name)) return vectors.has(expression[1] as string);
  return (
    /^(v128\.(load|const|and|or|xor|bitselect)|[if]\d+x\d+\.)/.test(name) && !name.includes("extract_lane")
  );
}

/** The largest number of vectors in a loop that are needed later: its local variables, and operands of an expression. */
function most_live_vectors(loop: Expression): number {
  const order = [...evaluated(loop)];
  const sets = order.filter(([name]) => name === "local.set" || name === "local.tee");
  const vectors = new Set<string>();
  for (const [, local, value] of sets)
    if (is_vector(value as Expression, vectors)) vectors.add(local as string);
  // A variable is live from a set to its last use before the next one, across the loop's end.
  const uses = order.map(([name, local]) =>
    vectors.has(local as string) && /^local\./.test(name as string)
      ? { local: local as string, is_get: name === "local.get" }
      : undefined,
  );
  const is_needed_after = (local: string, at: number) => {
    for (let step = 1; step <= uses.length; step++) {
      const next = uses[(at + step) % uses.length];
      if (next?.local === local) return next.is_get;
    }
    return false;
  };
  return Math.max(...order.map((_, at) => [...vectors].filter((local) => is_needed_after(local, at)).length));
}

describe.each(["relaxed", "relaxed_threads"])("int8's loop over bytes in %s", (level) => {
  const dot = "i32x4.relaxed_dot_i8x16_i7x16_add_s";

  let loops: Expression[];
  let loop: Expression;
  beforeAll(async () => {
    loops = await loops_with(level, dot);
    loop = loops[0] as Expression;
  });

  test("is four steps of a 6 × 8 tile", () => {
    expect(loops).toHaveLength(1);
    expect(count(loop, dot)).toBe(4 * 12);
    expect(count(loop, "v128.load")).toBe(4 * 2);
    expect(count(loop, "v128.load32_splat")).toBe(4 * 6);
    expect(count(loop, "v128.store")).toBe(0);
  });

  test("has its offsets in the loads", () => {
    const loads = [...evaluated(loop)].filter(([name]) => /^v128\.load/.test(name as string));
    const offset_of = (load: readonly Expression[]) => {
      const found = load.find((part) => typeof part === "string" && part.startsWith("offset="));
      return Number((found as string | undefined)?.slice("offset=".length) ?? 0);
    };
    const offsets = (name: string) =>
      loads
        .filter((load) => load[0] === name)
        .map(offset_of)
        .sort((a, b) => a - b);
    expect(offsets("v128.load")).toEqual(Array.from({ length: 8 }, (_, i) => 16 * i));
    expect(offsets("v128.load32_splat")).toEqual(Array.from({ length: 24 }, (_, i) => 4 * i));
  });

  test("needs no more vectors at a time than x86-64 has registers", () => {
    const live = most_live_vectors(loop);
    expect(live).toBeGreaterThanOrEqual(12);
    // Besides them, the value that is being loaded.
    expect(live).toBeLessThanOrEqual(15);
  });
});
