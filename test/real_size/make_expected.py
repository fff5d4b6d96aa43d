#!/usr/bin/env python3
"""What transformers' ViTMSN computes at real size, for weights that need no file.

  python test/real_size/make_expected.py

Weights and images are made of a hash of (tensor's key, index), which weights.ts computes to the same bits. Writes
test/real_size/{small,base}.safetensors: logits, the CLS row of last_hidden_state, and rows of some hidden states.
Needs: pip install torch transformers safetensors numpy
"""
import pathlib
import re

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import ViTMSNConfig, ViTMSNForImageClassification

SIZES = {
    "small": dict(hidden_size=384, num_attention_heads=6, intermediate_size=1536),
    "base": dict(hidden_size=768, num_attention_heads=12, intermediate_size=3072),
}
LABELS = 1000
LAYERS, TOKENS = [0, 6, 12], [0, 100, 196]
# transformers v5's names in memory -> the hub's
HUB_NAMES = [
    (r"\blayers\.(\d+)\.", r"encoder.layer.\1."),
    (r"attention\.q_proj", "attention.attention.query"),
    (r"attention\.k_proj", "attention.attention.key"),
    (r"attention\.v_proj", "attention.attention.value"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
]


def hub_name(name):
    for pattern, to in HUB_NAMES:
        name = re.sub(pattern, to, name)
    return name


def name_hash(name):
    """FNV-1a over 32 bits."""
    value = 0x811C9DC5
    for byte in name.encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


def mix(x):
    """lowbias32 (Wellons, "Prospecting for Hash Functions")."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def uniform(name, shape, amplitude):
    """Multiples of amplitude / 2^23 in [-amplitude, amplitude); the amplitude is a power of two, so all are exact."""
    key = mix(np.array([name_hash(name)], np.uint32))
    bits = mix(np.arange(np.prod(shape), dtype=np.uint32) ^ key) >> np.uint32(8)
    values = (bits.astype(np.int32) - (1 << 23)).astype(np.float32) * np.float32(amplitude / (1 << 23))
    return torch.from_numpy(values.reshape(shape))


def parameter(key, shape):
    if "layernorm" in key and key.endswith("weight"):
        return 1 + uniform(key, shape, 2**-3)
    return uniform(key, shape, 2**-4)


def expected(size):
    config = ViTMSNConfig(**SIZES[size], num_labels=LABELS, attn_implementation="eager")
    model = ViTMSNForImageClassification(config).eval()
    with torch.inference_mode():
        for name, values in model.named_parameters():
            values.copy_(parameter(hub_name(name), tuple(values.shape)))
        pixel_values = uniform("pixel_values", (2, 3, 224, 224), 2.0)
        backbone = model.vit(pixel_values=pixel_values, output_hidden_states=True)
        cls = backbone.last_hidden_state[:, 0]
        rows = [backbone.hidden_states[layer][:, TOKENS] for layer in LAYERS]
        return {"logits": model.classifier(cls), "cls": cls.contiguous(), "hidden_states": torch.stack(rows)}


if __name__ == "__main__":
    for size in SIZES:
        tensors = expected(size)
        save_file(tensors, pathlib.Path(__file__).parent / f"{size}.safetensors")
        print(size, {name: (tuple(t.shape), round(t.abs().max().item(), 3)) for name, t in tensors.items()})
