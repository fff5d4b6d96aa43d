// Counts the instructions that a wave issues, from RADV's assembly.

/** @typedef {{ instructions: string[] }} Block */

/** @param {string} assembly @returns {{ blocks: Block[], loops: [number, number][] }} */
function parse(assembly) {
  /** @type {Block[]} */
  const blocks = [];
  const index = new Map();
  for (const text of assembly.split("\n")) {
    const line = text.trim();
    const label = /^BB(\d+):/.exec(line);
    if (label) index.set(label[1], blocks.push({ instructions: [] }) - 1);
    else if (blocks.length > 0 && line !== "") blocks.at(-1)?.instructions.push(line);
  }
  // A branch backwards ends a loop.
  const ends = new Map();
  for (const [at, { instructions }] of blocks.entries())
    for (const instruction of instructions) {
      const target = /^s_c?branch\S*\s+BB(\d+)/.exec(instruction)?.[1];
      const start = index.get(target);
      if (start !== undefined && start <= at) ends.set(start, Math.max(ends.get(start) ?? 0, at));
    }
  return { blocks, loops: [...ends].sort(([a], [b]) => a - b) };
}

/**
 * Instructions that a wave issues, and how many of them multiply and add.
 * @param {string} assembly
 * @param {number[]} trips of the loops, by their depth of nesting; those of loops nested deeper count once
 */
export function count(assembly, trips) {
  const { blocks, loops } = parse(assembly);
  let issued = 0;
  let products = 0;
  for (const [at, { instructions }] of blocks.entries()) {
    const depth = loops.filter(([start, end]) => start <= at && at <= end).length;
    const times = trips.slice(0, depth).reduce((product, trip) => product * trip, 1);
    for (const instruction of instructions) {
      const name = /^\S+/.exec(instruction)?.[0] ?? "";
      // These wait, and take no slot of the arithmetic units.
      if (/^s_(delay|waitcnt)/.test(name)) continue;
      issued += times;
      // A dual instruction holds two.
      const parts = instruction.split("::").map((part) => part.trim());
      products += times * parts.filter((part) => /^v_(pk_|dual_)?(fma|fmac|mad|mac|dot)/.test(part)).length;
    }
  }
  return { issued: Math.round(issued), products: Math.round(products), loops: loops.length };
}
