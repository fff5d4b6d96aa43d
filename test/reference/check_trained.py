#!/usr/bin/env python3
"""Opens models that `vit-msn train` wrote in Hugging Face transformers, and records their logits.

The bundled model learns three labels from its ten example images for a few steps. transformers must load every key, and its
logits for the ten images are written to test/fixtures/training/trained_logits.json, which test/node/train_cli.test.ts
compares with those of a model that it trains alike.

Usage: python test/reference/check_trained.py   (torch, transformers, pillow; after ./build.sh)
"""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from PIL import Image
from transformers import ViTImageProcessorPil, ViTMSNForImageClassification

ROOT = Path(__file__).resolve().parents[2]
IMAGES = sorted((ROOT / "models/fashion/pictures").glob("*.png"))
LABELS = {"bag": ["8"], "shoe": ["5", "7", "9"], "top": ["0", "2", "4", "6"]}
ARGS = [
    *["--train-val-split", "0", "--model-name-or-path", "models/fashion", "--ignore-mismatched-sizes", "--save-strategy", "no"],
    *["--max-steps", "8", "--per-device-train-batch-size", "4", "--learning-rate", "0.0003", "--weight-decay", "0.05", "--quiet"],
]
CASES = {"float32": [], "float16": ["--dtype", "float16"]}


def train(folder: Path, name: str) -> Path:
    for label, numbers in LABELS.items():
        (folder / "images" / label).mkdir(parents=True, exist_ok=True)
        for image in IMAGES:
            if image.name[0] in numbers:
                shutil.copy(image, folder / "images" / label)
    out = folder / name
    where = ["--train-dir", str(folder / "images"), "--output-dir", str(out)]
    subprocess.run(["node", "dist/cli.js", "train", *where, *ARGS, *CASES[name]], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return out


def logits(out: Path) -> list[list[float]]:
    model, info = ViTMSNForImageClassification.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    assert list(model.config.id2label.values()) == sorted(LABELS), model.config.id2label
    processor = ViTImageProcessorPil.from_pretrained(out)
    images = [Image.open(image).convert("RGB") for image in IMAGES]
    with torch.inference_mode():
        result = model.eval()(**processor(images=images, return_tensors="pt")).logits
    return [[round(value, 6) for value in row] for row in result.tolist()]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        recorded = {name: logits(train(Path(folder), name)) for name in CASES}
    target = ROOT / "test/fixtures/training/trained_logits.json"
    target.write_text(json.dumps({"args": ARGS, "labels": LABELS, "cases": CASES, "logits": recorded}) + "\n")
    print(f"wrote {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
