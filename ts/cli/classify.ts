import { type ClassificationResult, type FunctionToApply, pipeline } from "../index.ts";
import { for_each_image, load, type ModelFlags } from "./run.ts";

interface ClassifyFlags extends ModelFlags {
  topK?: number;
  functionToApply?: FunctionToApply;
  json?: boolean;
}

/** `vit-msn classify`: prints the likeliest classes of each picture as it is done. Gives the exit code. */
export async function classify(images: string[], flags: ClassifyFlags, signal: AbortSignal): Promise<number> {
  const classifier = await load(flags, signal, (options) =>
    pipeline("image-classification", flags.model, options),
  );
  const print = flags.json ? print_json : table_printer(images);
  try {
    return await for_each_image(images, signal, async (name, image) => {
      const options = { top_k: flags.topK, function_to_apply: flags.functionToApply, signal };
      print(name, await classifier(image, options));
    });
  } finally {
    await classifier.dispose();
  }
}

function print_json(image: string, results: ClassificationResult[]): void {
  process.stdout.write(`${JSON.stringify({ image, results })}\n`);
}

/** Prints rows under a heading; the first column is as wide as the longest name. */
function table_printer(images: readonly string[]) {
  const width = Math.max("picture".length, ...images.map((name) => name.length));
  process.stdout.write(`${"picture".padEnd(width)}   score  label\n`);
  return (image: string, results: ClassificationResult[]): void => {
    results.forEach(({ label, score }, i) => {
      const name = i === 0 ? image : "";
      process.stdout.write(`${name.padEnd(width)}  ${score.toFixed(4).padStart(6)}  ${label}\n`);
    });
  };
}
