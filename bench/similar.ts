/**
 * A search among many embeddings (ImageIndex) compared with the same search written as a JavaScript loop.
 */
import { parseArgs } from "node:util";
import { ImageIndex, type ImageIndexOptions } from "../ts/similarity/image_index.ts";
import { machine, print, type Row, round } from "./support/report.ts";
import { time } from "./support/timing.ts";

const HELP = `Usage: node bench/run.mjs similar [OPTIONS]

  --images N    vectors in the index; default 100000
  --size N      numbers in a vector; default 384
  --threads N   threads of the engine; default 1
  --rounds N    measured searches; default 20
  --json        print JSON`;

const { values: options } = parseArgs({
  options: {
    images: { type: "string", default: "100000" },
    size: { type: "string", default: "384" },
    threads: { type: "string", default: "1" },
    rounds: { type: "string", default: "20" },
    json: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});

function noise(length: number, seed: number): Float32Array {
  let state = seed;
  return Float32Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    return state / 2 ** 31;
  });
}

/** The ten largest dot products, by a loop over all vectors. */
function plain_search(vectors: Float32Array, size: number, query: Float32Array): number[] {
  const scores = Array.from({ length: vectors.length / size }, (_, row) => {
    let sum = 0;
    for (let k = 0, at = row * size; k < size; k++, at++)
      sum += (vectors[at] as number) * (query[k] as number);
    return sum;
  });
  return scores.sort((a, b) => b - a).slice(0, 10);
}

async function measure(dtype: "float32" | "int8", images: number, size: number): Promise<Row> {
  const where: ImageIndexOptions = { dtype, num_threads: Number(options.threads) };
  const index = await ImageIndex.create(where);
  const vectors = noise(images * size, 1);
  const names = Array.from({ length: images }, (_, i) => `${i}`);
  for (let i = 0; i < images; i++) index.add(names[i] as string, vectors.subarray(i * size, (i + 1) * size));
  const times: number[] = [];
  const plain: number[] = [];
  for (let counted = -2; counted < Number(options.rounds); counted++) {
    const query = noise(size, 100 + counted);
    const ms = await time(() => index.nearest(query));
    if (counted >= 0) times.push(ms);
    if (counted >= 0 && counted < 3) plain.push(await time(async () => plain_search(vectors, size, query)));
  }
  await index.dispose();
  times.sort((a, b) => a - b);
  return {
    dtype,
    images,
    size,
    "ms, median": round(times[times.length >> 1] as number),
    "ms, least": round(times[0] as number),
    "JavaScript loop, ms": round(Math.min(...plain)),
  };
}

async function main(): Promise<void> {
  if (options.help) return console.log(HELP);
  const [images, size] = [Number(options.images), Number(options.size)];
  const where = machine();
  const rows = [await measure("float32", images, size), await measure("int8", images, size)];
  print(`The ten nearest of ${images} vectors, ${options.threads} thread(s)`, where, rows, options.json);
}

await main();
