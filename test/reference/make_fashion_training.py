#!/usr/bin/env python3
"""The first steps of training the bundled model's architecture from scratch, by PyTorch: models/fashion/README.md's recipe.

Parameters start as `from_config` starts them with seed 0 (ts/model/random.ts), positions and CLS likewise; step i takes images
(16 i + j) * 383 mod 1000 of models/fashion/test1000.safetensors, mirrored in every third step. AdamW with weight decay
on what the Trainer decays, one-cycle without momentum's, clipping.

Usage: python test/reference/make_fashion_training.py   (torch, transformers, accelerate, safetensors, numpy)
Writes test/fixtures/training/fashion.json.
"""

import json
from pathlib import Path

import numpy as np
import torch
from make_fixtures import v4
from safetensors.torch import load_file
from transformers import Trainer, ViTMSNConfig, ViTMSNForImageClassification

ROOT = Path(__file__).resolve().parents[2]
STEPS, BATCH, STRIDE = 30, 16, 383
RATE, WEIGHT_DECAY, MAX_NORM, WARMUP = 1e-3, 0.05, 1.0, 0.1


def mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def normal_values(seed: int, name: str, length: int, std: float) -> torch.Tensor:
    hashed = 0x811C9DC5
    for char in name:
        hashed = ((hashed ^ ord(char)) * 0x01000193) & 0xFFFFFFFF
    key = mix(np.array([hashed], np.uint32) ^ mix(np.array([seed], np.uint32)))
    counter = np.arange(2 * length, dtype=np.uint32)
    bits = mix(key ^ mix(counter)).astype(np.float64)
    u1, u2 = (bits[0::2] + 1) / 4294967297, bits[1::2] / 4294967296
    return torch.from_numpy((std * np.sqrt(-2 * np.log(u1)) * np.cos(2 * np.pi * u2)).astype(np.float32))


def start(model: torch.nn.Module, std: float) -> None:
    with torch.no_grad():
        for name, p in model.named_parameters():
            key = v4(name).removeprefix("vit.")
            drawn = key.endswith(("cls_token", "position_embeddings")) or (key.endswith("weight") and "layernorm" not in key)
            if drawn:
                p.copy_(normal_values(0, key, p.numel(), std).reshape(p.shape))
            else:
                p.fill_(1.0 if key.endswith("weight") else 0.0)


def main() -> None:
    config = ViTMSNConfig.from_pretrained(ROOT / "models/fashion", attn_implementation="sdpa")
    model = ViTMSNForImageClassification(config).train()
    start(model, config.initializer_range)
    tensors = load_file(ROOT / "models/fashion/test1000.safetensors")
    images = (tensors["pictures"].float() / 255 - 0.5) / 0.5
    labels = tensors["labels"].long()
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    groups = [
        dict(params=[p for name, p in model.named_parameters() if (name in decayed) == is_decayed], weight_decay=decay)
        for is_decayed, decay in ((True, WEIGHT_DECAY), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=WARMUP, cycle_momentum=False)
    losses, rates = [], []
    for step in range(STEPS):
        at = (torch.arange(step * BATCH, (step + 1) * BATCH) * STRIDE) % len(labels)
        x = images[at][:, None].expand(-1, 3, -1, -1)
        loss = model(pixel_values=x.flip(-1) if step % 3 == 0 else x, labels=labels[at]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        losses.append(loss.item())
        rates.append(schedule.get_last_lr()[0])
        optimizer.step(), schedule.step(), optimizer.zero_grad()
    target = ROOT / "test/fixtures/training/fashion.json"
    target.write_text(json.dumps({"loss": losses, "learning_rate": rates}) + "\n")
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")


if __name__ == "__main__":
    main()
