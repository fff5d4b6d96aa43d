/** The headings of the options in --help, in their order. */
export const HEADINGS = [
  "Data:",
  "Output, checkpoints and logs:",
  "Model:",
  "New encoder:",
  "Training:",
  "Optimiser:",
  "Views:",
  "Loss:",
  "Evaluation:",
  "General options:",
] as const;

type Heading = (typeof HEADINGS)[number];

/** What --help shows of an option. */
export interface OptionHelp {
  heading: Heading;
  text: string;
  /** The name of its value, if its kind doesn't suggest one. */
  value?: string;
}

const under =
  (heading: Heading) =>
  (text: string, value?: string): OptionHelp => ({ heading, text, value });

export const data = under("Data:");
export const output = under("Output, checkpoints and logs:");
export const model = under("Model:");
export const encoder = under("New encoder:");
export const training = under("Training:");
export const optimiser = under("Optimiser:");
export const views = under("Views:");
export const loss = under("Loss:");
export const evaluation = under("Evaluation:");
export const general = under("General options:");

/** Explains the values of options, below --help. */
export const VALUES_HELP = `

<n> is an integer and <x> a number. [bool] is true or false; an option without
it is true. Options may be written with underscores: --train_dir.
`;
