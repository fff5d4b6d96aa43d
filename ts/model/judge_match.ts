import { env } from "../env.ts";
import { VitMsnError } from "../errors.ts";
import { canonical_key } from "./checkpoint_keys.ts";
import type { CheckpointMatch } from "./checkpoint_match.ts";

export { accept_resized_positions } from "./resized_positions.ts";

/** What judging needs to know of a model class. */
interface JudgedClass {
  readonly architecture: string;
  readonly head_keys: readonly string[];
}

/** Throws if the model would be wrong; warns about a newly initialised head and unused keys. */
export function judge_match(
  match: CheckpointMatch,
  name: string,
  model_class: JudgedClass,
  ignore_mismatched_sizes: boolean,
): void {
  const { missing, mismatched, unreadable } = match;
  const { architecture, head_keys } = model_class;
  const unexpected = match.unexpected.filter((key) => !is_skipped(canonical_key(key), model_class));
  const there = new Set(unreadable.map(({ key }) => canonical_key(key)));
  const lost = missing.filter((key) => !there.has(key) && !may_be_fresh(key, match, model_class));
  const misshapen = ignore_mismatched_sizes ? [] : mismatched;
  if (lost.length + misshapen.length + unreadable.length > 0) {
    throw mismatch_error(name, { missing: lost, mismatched: misshapen, unexpected, unreadable });
  }
  const fresh = [...missing, ...mismatched.map(({ key }) => canonical_key(key))];
  if (fresh.length > 0 && fresh.every((key) => head_keys.includes(key) && key.endsWith(".bias"))) {
    env.warn(`${name}: ${list(fresh)} is missing from the checkpoint; using zeros.`);
  } else if (fresh.length > 0) {
    env.warn(
      `${name}: not in the checkpoint and newly initialised: ${list(fresh)}. ` +
        `Train ${architecture} on your own data before you trust its predictions.`,
    );
  }
  if (unexpected.length > 0) {
    env.warn(`${name}: keys of the checkpoint that ${architecture} doesn't use: ${list(unexpected)}.`);
  }
}

/** Heads that a model ignores on purpose: a classifier's in a backbone, and pre-training's projection. */
function is_skipped(key: string, { head_keys }: JudgedClass): boolean {
  return key.startsWith("head.") || (head_keys.length === 0 && key.startsWith("classifier."));
}

/** A head may be missing as a whole, as in a backbone's checkpoint; a missing bias counts as zeros. */
function may_be_fresh(
  key: string,
  { missing, unreadable }: CheckpointMatch,
  { head_keys }: JudgedClass,
): boolean {
  if (!head_keys.includes(key) || unreadable.some((one) => head_keys.includes(canonical_key(one.key))))
    return false;
  return key.endsWith(".bias") || head_keys.every((head_key) => missing.includes(head_key));
}

function mismatch_error(
  name: string,
  { missing, mismatched, unexpected, unreadable }: Omit<CheckpointMatch, "found">,
): VitMsnError {
  const shapes = mismatched.map(
    ({ key, expected, found }) => `${key} is [${found.join(", ")}], expected [${expected.join(", ")}]`,
  );
  const dtypes = unreadable.map(({ key, dtype }) => `${key} is ${dtype}`);
  const parts = [
    missing.length > 0 && `missing keys: ${list(missing)}`,
    shapes.length > 0 && `keys of the wrong shape: ${list(shapes, "; ")}`,
    dtypes.length > 0 && `unsupported dtypes (save these keys as float32): ${list(dtypes)}`,
    unexpected.length > 0 && `unexpected keys: ${list(unexpected)}`,
    hint(missing, unexpected),
  ].filter(Boolean);
  return new VitMsnError(
    "CHECKPOINT_MISMATCH",
    `${name}: the checkpoint doesn't fit config.json. ${parts.join(". ")}.`,
    {
      details: {
        missing_keys: missing,
        mismatched_keys: mismatched,
        unexpected_keys: unexpected,
        unreadable_keys: unreadable,
      },
    },
  );
}

/** What the keys reveal about the checkpoint's origin; "" if nothing. */
function hint(missing: readonly string[], unexpected: readonly string[]): string {
  if (unexpected.some((key) => /\.(?:lora_[AB]|base_layer)\./.test(key))) {
    return "It holds a LoRA adapter next to the weights: merge it in Python (merge_and_unload()) and save the model again";
  }
  for (const key of unexpected) {
    const wanted = missing.find((one) => key.endsWith(`.${one}`));
    if (wanted === undefined) continue;
    const prefix = key.slice(0, -wanted.length).replace(/vit\.$/, "");
    const all = unexpected.filter((one) => one.startsWith(prefix)).length;
    return `${all} keys begin with ${JSON.stringify(prefix)}: remove that prefix in Python and save the checkpoint again`;
  }
  return "";
}

/** The first names, for a message; `details` has all of them. */
function list(names: readonly string[], separator = ", "): string {
  const shown = names.slice(0, 20).join(separator);
  return names.length > 20 ? `${shown} and ${names.length - 20} more` : shown;
}
