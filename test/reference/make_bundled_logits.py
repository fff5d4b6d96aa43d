#!/usr/bin/env python3
"""What transformers makes of the thousand held-out images by the model that the package carries.

  python make_bundled_logits.py    writes models/fashion_msn/logits1000.safetensors, and prints the accuracy
"""

import pathlib

import torch
from safetensors.torch import load_file, save_file
from transformers import ViTMSNForImageClassification

MODELS = pathlib.Path(__file__).resolve().parents[2] / "models"

data = load_file(MODELS / "fashion/test1000.safetensors")
model = ViTMSNForImageClassification.from_pretrained(MODELS / "fashion_msn/classifier").eval()
pixels = (data["pictures"].reshape(-1, 1, 28, 28).float() / 255 - 0.5) / 0.5
with torch.no_grad():
    logits = model(pixels.expand(-1, 3, -1, -1)).logits
save_file({"out.logits": logits.contiguous()}, MODELS / "fashion_msn/logits1000.safetensors")
print((logits.argmax(1) == data["labels"].flatten()).float().mean().item())
