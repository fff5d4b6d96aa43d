#!/usr/bin/env python3
"""Opens a model that `vit-msn few-shot --export` wrote in Hugging Face transformers, and records its logits.

The bundled model's backbone learns three labels from its ten example images, once for each kind of feature that can be
exported; transformers must load every key, give the probabilities that vit-msn prints, and its logits are written to
test/fixtures/few_shot/exported_logits.json, which test/suite/few_shot.test.ts compares ours with.

Usage: python test/reference/check_exported_head.py   (torch, transformers, pillow; after ./build.sh)
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
CASES = {
    "cls_before_norm": ["--features", "cls_before_norm"],
    "cls": ["--features", "cls", "--no-normalize", "--intercept", "--penalty", "1"],
}


def vit_msn(*args: str) -> str:
    command = ["node", str(ROOT / "dist/cli.js"), *args]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def check(options: list[str], folder: Path) -> list[list[float]]:
    out = vit_msn(
        "few-shot", "--teach", str(folder / "teach"), "--export", str(folder / "model"), "--json", *options,
        *map(str, IMAGES),
    )
    lines = [json.loads(line) for line in out.splitlines()]
    printed = {Path(line["image"]).name: line["results"] for line in lines if "image" in line}
    model, info = ViTMSNForImageClassification.from_pretrained(folder / "model", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    processor = ViTImageProcessorPil.from_pretrained(folder / "model")
    inputs = processor([Image.open(path).convert("RGB") for path in IMAGES], return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    worst = 0.0
    for path, probs in zip(IMAGES, logits.softmax(-1)):
        results = printed[path.name]
        assert [r["label"] for r in results] == [model.config.id2label[i.item()] for i in probs.argsort(descending=True)]
        for result in results:
            worst = max(worst, abs(result["score"] - probs[model.config.label2id[result["label"]]].item()))
    print(options, "largest difference of a probability:", worst)
    assert worst < 1e-4
    return [[round(x, 6) for x in row] for row in logits.tolist()]


def main() -> None:
    recorded = {}
    for name, options in CASES.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            for label, kinds in LABELS.items():
                (folder / "teach" / label).mkdir(parents=True)
                for path in IMAGES:
                    if path.name.split("-")[0] in kinds:
                        shutil.copy(path, folder / "teach" / label)
            recorded[name] = check(options, folder)
    target = ROOT / "test/fixtures/few_shot/exported_logits.json"
    target.write_text(json.dumps({"images": [path.name for path in IMAGES], "logits": recorded}) + "\n")


if __name__ == "__main__":
    main()
