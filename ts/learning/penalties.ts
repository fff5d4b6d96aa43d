/**
 * λ in MSN's low-shot evaluation. "few" (0.0025): the repository's README, for 5 images per class; "percent"
 * (0.075): the author's, for 1 % of ImageNet, 13 images per class; "code" (0.00025): the evaluation script's
 * default.
 */
export const MSN_PENALTIES = { few: 0.0025, percent: 0.075, code: 0.00025 } as const;
export type MsnPenalty = keyof typeof MSN_PENALTIES;

/** The candidates of `penalty: "auto"`: the three values above, and stronger ones. */
export const PENALTY_GRID: readonly number[] = [0.00025, 0.0025, 0.025, 0.075, 0.25, 1, 4];
