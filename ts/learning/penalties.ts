/**
 * λ as MSN's low-shot evaluation has it. "few" (0.0025): the repository's README, for 5 pictures a class; "percent" (0.075):
 * the author's, for 1 % of ImageNet, 13 pictures a class; "code" (0.00025): the evaluation script's default.
 */
export const MSN_PENALTIES = { few: 0.0025, percent: 0.075, code: 0.00025 } as const;
export type MsnPenalty = keyof typeof MSN_PENALTIES;

/** What `penalty: "auto"` chooses from: the script's three, and stronger ones. */
export const PENALTY_GRID: readonly number[] = [0.00025, 0.0025, 0.025, 0.075, 0.25, 1, 4];
