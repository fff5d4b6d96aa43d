/**
 * The code whose tests are tested, and the test files that answer for it.
 * @typedef {{ name: string, code: RegExp, tests: string[] }} Area
 * @type {readonly Area[]}
 */
export const AREAS = [
  {
    name: "loading",
    code: /^ts\/loading\/(?!.*\.(?:web|edge)\.ts$)/,
    tests: [
      "suite/loading_",
      "suite/checkpoint_kinds",
      "suite/config",
      "suite/options",
      "node/hub.",
      "node/hub_folder",
      "node/network",
    ],
  },
  {
    name: "image",
    code: /^ts\/image\/(?!.*\.(?:web|edge)\.ts$)/,
    tests: ["suite/image_", "suite/env_decode", "suite/processor", "node/image_files"],
  },
  {
    name: "model",
    code: /^ts\/model\//,
    tests: ["suite/model", "suite/config", "suite/parity", "suite/options", "suite/webgpu_execution"],
  },
  {
    name: "learning",
    code: /^ts\/learning\//,
    tests: ["suite/few_shot", "suite/logistic_regression", "node/few_shot_cli"],
  },
  {
    name: "training",
    code: /^ts\/training\//,
    tests: [
      "suite/trainer",
      "suite/training",
      "suite/pretraining",
      "suite/augmentations",
      "suite/gradients",
      "node/train_cli",
    ],
  },
  {
    name: "batch",
    code: /^ts\/(?:cli\/batch|files)\//,
    tests: ["node/batch", "node/sources", "node/durability", "node/tar_reader", "node/cli"],
  },
  { name: "serve", code: /^ts\/cli\/serve\//, tests: ["node/serve"] },
  {
    name: "engine",
    code: /^ts\/engine\/(?!generated|.*\.(?:web|edge)\.ts$)/,
    tests: ["suite/worker_engine", "suite/wasm_engine", "node/threads.", "suite/webgpu_execution"],
  },
];
