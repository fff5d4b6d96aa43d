"""What torchvision's resize makes of uint8 images, for test/suite/torchvision_resize.test.ts.

    python test/reference/make_torchvision_resize.py    # torch 2.15.0, torchvision 0.29.2, transformers 5.24.0, on x64 with AVX2

Writes test/fixtures/torchvision_resize.json: each case with 60 samples of the result and the sum of all its bytes, and how far the
float32 path is away, which torchvision takes on GPUs and processors without AVX2.
"""

import json
import os

import numpy as np
import torch
from torchvision.transforms.v2 import functional as tvF
from transformers import ViTImageProcessor

FILTERS = {
    "nearest": tvF.InterpolationMode.NEAREST_EXACT,
    "lanczos": tvF.InterpolationMode.LANCZOS,
    "bilinear": tvF.InterpolationMode.BILINEAR,
    "bicubic": tvF.InterpolationMode.BICUBIC,
}
# [width, height, channels] of the source, [width, height] of the result.
SHAPES = [
    ((61, 47, 3), (24, 24)),
    ((61, 47, 3), (16, 40)),
    ((23, 90, 3), (20, 13)),
    ((19, 14, 3), (48, 33)),
    ((500, 9, 3), (7, 9)),
    ((30, 20, 1), (11, 7)),
    ((30, 20, 4), (11, 27)),
]


def image_of(width, height, channels):
    """The same pixels as in the test."""
    y, x, c = np.mgrid[0:height, 0:width, 0:channels]
    return ((x * x * 3 + y * 13 + c * 50 + x * y * 7 + (x // 5 + y // 3) % 2 * 128) % 256).astype(np.uint8)


def samples(array):
    flat = array.reshape(-1)
    positions = np.unique(np.linspace(0, flat.size - 1, 60).astype(int))
    return [[int(at), flat[at].item()] for at in positions]


def main():
    cases = []
    for source, (width, height) in SHAPES:
        tensor = torch.from_numpy(image_of(*source)).permute(2, 0, 1).contiguous()
        for name, interpolation in FILTERS.items():
            resized = tvF.resize(tensor, [height, width], interpolation=interpolation, antialias=True)
            floats = tvF.resize(tensor.float(), [height, width], interpolation=interpolation, antialias=True)
            off = (floats.clamp(0, 255).round() - resized).abs().max().item()
            pixels = resized.permute(1, 2, 0).numpy()
            cases.append(
                {
                    "source": source,
                    "size": [width, height],
                    "resample": name,
                    "sum": int(pixels.sum()),
                    "samples": samples(pixels),
                    "float_off_by": off,
                }
            )
    processor = ViTImageProcessor(size={"height": 24, "width": 24})
    assert processor.backend == "torchvision"
    values = processor(image_of(61, 47, 3), return_tensors="np")["pixel_values"]
    target = os.path.join(os.path.dirname(__file__), "..", "fixtures", "torchvision_resize.json")
    with open(target, "w") as file:
        json.dump({"cases": cases, "pixel_values": samples(values.astype(np.float32))}, file)
        file.write("\n")


main()
