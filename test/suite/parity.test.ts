import { runnable_levels } from "../support/levels.ts";
import { type ParityEngine, test_parity } from "../support/parity_tests.ts";

const levels = (
  names: readonly string[],
  counts: readonly number[],
  worker = false,
): readonly ParityEngine[] =>
  names.flatMap((level) => counts.map((num_threads) => ({ level, num_threads, worker })));
/** Pages are served without what threads need: theirs are in test/node/threads_page.test.ts. */
const THREADED = levels(["simd128+threads", "relaxed+threads"], [1, 2, 3]);
/** The engine for V8's 256-bit vectors, which gives the same results without them; only Node chooses it. */
const WIDE = [...levels(["relaxed-wide"], [1]), ...levels(["relaxed-wide+threads"], [2])];
/** Every CPU engine that this runtime can run. */
const ENGINES = [
  ...levels(["simd128", "relaxed"], [1]),
  ...levels(["relaxed"], [1], true),
  ...(typeof document === "undefined"
    ? [...THREADED, ...WIDE, ...levels(["relaxed+threads"], [2], true)]
    : []),
];

const runnable: readonly string[] = await runnable_levels(...new Set(ENGINES.map(({ level }) => level)));

test_parity(ENGINES.filter(({ level }) => runnable.includes(level)));
