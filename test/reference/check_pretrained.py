#!/usr/bin/env python3
"""Opens encoders that `vit-msn pretrain` wrote in Hugging Face transformers, and records their CLS tokens.

A small encoder learns from the bundled model's ten example images for a few steps. transformers must load every key, and its CLS
tokens of the ten images are written to test/fixtures/pretrained_cls.json, which test/node/pretrain_cli.test.ts compares with
those of an encoder that it trains alike.

Usage: python test/reference/check_pretrained.py   (torch, transformers, pillow; after ./build.sh)
"""

import json
import subprocess
import tempfile
from pathlib import Path

import torch
from PIL import Image
from transformers import ViTImageProcessorPil, ViTMSNModel

ROOT = Path(__file__).resolve().parents[2]
IMAGES = sorted((ROOT / "models/fashion/pictures").glob("*.png"))
ARGS = [
    *["--train-dir", "models/fashion/pictures", "--hidden-size", "32", "--num-hidden-layers", "2", "--num-attention-heads", "2"],
    *["--intermediate-size", "64", "--image-size", "28", "--patch-size", "4", "--per-device-train-batch-size", "5"],
    *["--focal-views", "2", "--hidden-dim", "48", "--output-dim", "24", "--num-proto", "16", "--max-steps", "6"],
    *["--learning-rate", "0.003", "--ema-momentum", "0.9", "--save-strategy", "no", "--quiet"],
]
CASES = {"target": [], "online": ["--export-branch", "online"]}


def cls_tokens(out: Path) -> list[list[float]]:
    model, info = ViTMSNModel.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    processor = ViTImageProcessorPil.from_pretrained(out)
    images = [Image.open(image).convert("RGB") for image in IMAGES]
    with torch.inference_mode():
        hidden = model.eval()(**processor(images=images, return_tensors="pt")).last_hidden_state
    return [[round(value, 5) for value in row] for row in hidden[:, 0].tolist()]


def main() -> None:
    recorded = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, args in CASES.items():
            out = Path(folder) / name
            command = ["node", "dist/cli.js", "pretrain", *ARGS, *args, "--output-dir", str(out)]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            recorded[name] = cls_tokens(out)
    target = ROOT / "test/fixtures/pretrained_cls.json"
    target.write_text(json.dumps({"args": ARGS, "cases": CASES, "cls": recorded}) + "\n")
    print(f"wrote {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
