import { parseArgs } from "node:util";
import { env } from "vit-msn";
import { draw_case } from "./cases.ts";
import { run_case } from "./run_case.ts";
import { type StressReport, stress } from "./stress.ts";

const HELP = `Usage: npm run stress -- [OPTIONS]

Random models, images, options, aborts and disposals, several models at once: wrong answers, leaks, hangs?

  --minutes N   how long; default 1
  --seed N      first seed; default by the clock. It is printed
  --lanes N     cases at once; default 3
  --case N      only the case that a failure named`;

const { values: options } = parseArgs({
  options: {
    minutes: { type: "string", default: "1" },
    seed: { type: "string" },
    lanes: { type: "string", default: "3" },
    case: { type: "string" },
    help: { type: "boolean", default: false },
  },
});

function show({ cases, forwards, seconds, resident }: StressReport): void {
  const megabytes = Math.round(resident / 1e6);
  console.log(`${seconds} s: ${cases} cases, ${forwards} forwards, ${megabytes} MB resident`);
}

async function main(): Promise<void> {
  if (options.help) return console.log(HELP);
  env.warn = () => {};
  if (options.case !== undefined) {
    const stress_case = draw_case(Number(options.case));
    console.log(JSON.stringify(stress_case, null, 2));
    return run_case(stress_case);
  }
  const seed = options.seed === undefined ? Date.now() >>> 0 : Number(options.seed);
  console.log(`Seed ${seed}`);
  const ms = Number(options.minutes) * 60_000;
  show(await stress({ seed, until: { ms }, lanes: Number(options.lanes), report: show }));
  console.log("No wrong answer, no leak, no hang.");
}

await main();
