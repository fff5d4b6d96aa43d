#!/usr/bin/env python3
"""What Pillow and torchvision make of small images: colours changed, grey, blurred, and RandAugment's changes.

Usage: python test/reference/make_augmentations.py   (pillow, numpy, and torchvision where there is one)
Writes test/fixtures/augmentations.json: each image's bytes in base64, and under each change the bytes that it gives.
"""

import base64
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

ROOT = Path(__file__).resolve().parents[2]
FACTORS = [0, 0.2, 0.61, 1, 1.4, 1.7999]
HUES = [-0.5, -0.1, -0.013, 0, 0.05, 0.2, 0.5]
RADII = [0, 0.1, 0.35, 0.8, 1.2345, 2, 4.7, 11]

ANGLES = [-30, -11.3, 0, 7, 29.99]
# Shears, shifts, and a bit of everything.
MAPS = [
    [1, 0.27, 0, 0, 1, 0],
    [1, 0, 0, -0.3, 1, 0],
    [1, 0, 3.27, 0, 1, 0],
    [1, 0, 0, 0, 1, -2.5],
    [0.9, -0.2, 1.3, 0.1, 1.1, -1.7],
]
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
FILL = (124, 116, 104)


def adjust_hue(image: Image.Image, turn: float) -> Image.Image:
    """torchvision.transforms.functional.adjust_hue for PIL images."""
    if image.mode == "L":
        return image
    h, s, v = image.convert("HSV").split()
    turned = (np.asarray(h, dtype=np.uint8).astype(np.int32) + int(turn * 255)) % 256
    return Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8), "L"), s, v)).convert("RGB")


def images() -> dict[str, Image.Image]:
    random = np.random.default_rng(3)
    y, x = np.mgrid[0:13, 0:17]
    waves = np.stack([128 + 120 * np.sin(x * a + y * b) for a, b in ((0.4, 0.2), (-0.3, 0.5), (0.1, -0.7))], axis=-1)
    return {
        "noise": Image.fromarray(random.integers(0, 256, (9, 11, 3), dtype=np.uint8)),
        "waves": Image.fromarray(waves.astype(np.uint8)),
        "grey": Image.fromarray(random.integers(0, 256, (7, 10), dtype=np.uint8)),
        "pixel": Image.fromarray(np.array([[[200, 30, 90]]], dtype=np.uint8)),
        "colours": Image.fromarray(random.integers(0, 256, (20, 25, 3), dtype=np.uint8)),
    }


def changes(image: Image.Image) -> dict[str, list]:
    return {
        "brightness": [(f, ImageEnhance.Brightness(image).enhance(f)) for f in FACTORS],
        "contrast": [(f, ImageEnhance.Contrast(image).enhance(f)) for f in FACTORS],
        "saturation": [(f, ImageEnhance.Color(image).enhance(f)) for f in FACTORS],
        "hue": [(f, adjust_hue(image, f)) for f in HUES],
        "sharpness": [(f, ImageEnhance.Sharpness(image).enhance(f)) for f in FACTORS],
        "auto_contrast": [(0, ImageOps.autocontrast(image))],
        "equalize": [(0, ImageOps.equalize(image))],
        "posterize": [(bits, ImageOps.posterize(image, bits)) for bits in (1, 3, 4, 8)],
        "solarize": [(threshold, ImageOps.solarize(image, threshold)) for threshold in (0, 26, 128, 256)],
        **{f"rotate_{name}": [(a, image.rotate(a, resample, fillcolor=fill(image))) for a in ANGLES] for name, resample in FILTERS.items()},
        **{
            f"affine_{name}": [(m, image.transform(image.size, Image.Transform.AFFINE, m, resample, fillcolor=fill(image))) for m in MAPS]
            for name, resample in FILTERS.items()
        },
        "blur": [(f, image.filter(ImageFilter.GaussianBlur(f))) for f in RADII],
    }


def fill(image: Image.Image):
    return FILL if image.mode == "RGB" else FILL[0]


def encode(image: Image.Image) -> str:
    return base64.b64encode(image.tobytes()).decode()


def check_hue() -> None:
    try:
        from torchvision.transforms.functional import adjust_hue as theirs
    except ImportError:
        print("no torchvision: hue is by its definition alone")
        return
    for image in images().values():
        for turn in HUES:
            assert encode(theirs(image, turn)) == encode(adjust_hue(image, turn)), turn


def main() -> None:
    check_hue()
    out = {}
    for name, image in images().items():
        done = {change: [[value, encode(result)] for value, result in results] for change, results in changes(image).items()}
        out[name] = {"size": image.size, "channels": len(image.getbands()), "data": encode(image), **done}
    target = ROOT / "test/fixtures/augmentations.json"
    target.write_text(json.dumps(out) + "\n")
    print(f"wrote {target.relative_to(ROOT)}, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
