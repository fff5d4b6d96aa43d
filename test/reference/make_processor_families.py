"""Pixels of transformers' image processors of other families (their Pillow backends), for test/suite/processor_families.test.ts.

    python test/reference/make_processor_families.py    # transformers 5.24.0, Pillow, NumPy; writes test/fixtures/processor_families.json
"""

import importlib
import json
import os
import tempfile

import numpy as np
from PIL import Image

CASES = [
    ("bit", {"image_processor_type": "BitImageProcessor"}),
    ("bit", {"image_processor_type": "BitImageProcessor", "size": 12, "crop_size": 8, "do_normalize": None}),
    ("bit", {"image_processor_type": "BitImageProcessorFast", "size": {"shortest_edge": 10}, "do_center_crop": None}),
    ("bit", {"image_processor_type": "BitImageProcessor", "size": 6, "crop_size": {"height": 9, "width": 30}}),
    ("clip", {"feature_extractor_type": "CLIPFeatureExtractor", "size": 9, "crop_size": 7}),
    ("chinese_clip", {"image_processor_type": "ChineseCLIPImageProcessor", "crop_size": [5, 8]}),
    ("deit", {"image_processor_type": "DeiTImageProcessor"}),
    ("deit", {"image_processor_type": "DeiTImageProcessor", "size": 12, "crop_size": 9, "resample": 2}),
    ("pvt", {"image_processor_type": "PvtImageProcessor", "size": 9}),
    ("blip", {"image_processor_type": "BlipImageProcessor", "size": {"height": 7, "width": 9}}),
    ("siglip", {"image_processor_type": "SiglipImageProcessor"}),
    ("siglip", {"image_processor_type": "SiglipImageProcessor", "size": 9}),
    ("beit", {"image_processor_type": "BeitImageProcessor", "size": 9}),
    ("beit", {"image_processor_type": "BeitImageProcessor", "size": 9, "do_center_crop": 1, "crop_size": 5}),
    ("segformer", {"image_processor_type": "SegformerImageProcessor", "size": 9, "do_reduce_labels": True}),
    ("mobilenet_v1", {"image_processor_type": "MobileNetV1ImageProcessor", "size": 13, "crop_size": 9}),
    ("mobilenet_v2", {"image_processor_type": "MobileNetV2ImageProcessor"}),
    ("levit", {"image_processor_type": "LevitImageProcessor", "size": 14, "crop_size": 14}),
    ("levit", {"image_processor_type": "LevitImageProcessor", "size": {"height": 14, "width": 15}, "do_center_crop": False}),
    ("poolformer", {"image_processor_type": "PoolFormerImageProcessor"}),
    ("poolformer", {"image_processor_type": "PoolFormerImageProcessor", "size": 9, "crop_size": 9, "crop_pct": 0.7}),
    ("poolformer", {"image_processor_type": "PoolFormerImageProcessor", "size": {"height": 9, "width": 9}, "crop_size": 9}),
    ("poolformer", {"image_processor_type": "PoolFormerImageProcessor", "size": [9, 12], "crop_size": 9}),
    ("convnext", {"image_processor_type": "ConvNextImageProcessor"}),
    ("convnext", {"image_processor_type": "ConvNextImageProcessor", "size": 28, "crop_pct": 0.875}),
    ("convnext", {"image_processor_type": "ConvNextImageProcessor", "do_resize": False}),
    ("efficientnet", {"image_processor_type": "EfficientNetImageProcessor", "size": 9}),
    ("efficientnet", {"image_processor_type": "EfficientNetImageProcessor", "size": 9, "include_top": False}),
    ("efficientnet", {"image_processor_type": "EfficientNetImageProcessor", "size": 9, "do_normalize": 0, "image_std": [0.2, 0.3, 0.4]}),
    ("vit", {"image_processor_type": "ViTImageProcessor", "size": 9, "do_resize": "false", "do_rescale": 1, "do_normalize": ""}),
    ("vit", {"image_processor_type": "ViTImageProcessor", "do_resize": None, "do_normalize": 0, "image_mean": [float("nan"), 0, 0]}),
    ("vit", {"image_processor_type": "ViTImageProcessorFast", "size": 9, "do_rescale": None, "rescale_factor": float("inf"), "do_pad": True}),
]


def processor_class(family):
    module = importlib.import_module(f"transformers.models.{family}.image_processing_pil_{family}")
    return getattr(module, module.__all__[0])


def main():
    y, x, c = np.mgrid[0:20, 0:30, 0:3]
    image = Image.fromarray(((x * x * 3 + y * 13 + c * 50 + x * y) % 256).astype(np.uint8))
    results = []
    for family, config in CASES:
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, "preprocessor_config.json"), "w") as file:
                json.dump(config, file)
            processor = processor_class(family).from_pretrained(folder)
        pixels = processor(images=image, return_tensors="np")["pixel_values"].astype(np.float32)
        flat = pixels.reshape(-1)
        positions = np.unique(np.linspace(0, flat.size - 1, 40).astype(int))
        results.append(
            {
                "config": json.dumps(config),
                "dims": pixels.shape,
                "samples": [[int(at), float(flat[at])] for at in positions],
            }
        )
    target = os.path.join(os.path.dirname(__file__), "..", "fixtures", "processor_families.json")
    with open(target, "w") as file:
        json.dump(results, file)
        file.write("\n")


main()
