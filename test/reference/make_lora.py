#!/usr/bin/env python3
"""LoRA by peft on the fixture "tiny": adapters, the gradients of a loss by them, and the merged weights after a step.

Usage: python test/reference/make_lora.py   (torch, transformers, peft, safetensors)
Writes test/fixtures/lora.safetensors.
"""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import ViTMSNForImageClassification

ROOT = Path(__file__).resolve().parents[2]
NAMES = {
    "layers.": "encoder.layer.",
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
RANK, ALPHA, RATE = 3, 7, 0.5


def main() -> None:
    torch.manual_seed(0)
    model = ViTMSNForImageClassification.from_pretrained(ROOT / "test/fixtures/tiny")
    expected = load_file(ROOT / "test/fixtures/tiny/expected.safetensors")
    # transformers 5's names of query, value and dense.
    targets = ["q_proj", "v_proj", "o_proj", "fc1", "fc2"]
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, modules_to_save=["classifier"]))
    adapters = {name: p for name, p in model.named_parameters() if "lora_" in name}
    out = {}
    with torch.no_grad():
        for name, p in adapters.items():
            p.copy_(0.2 * torch.randn_like(p))
    for name, p in adapters.items():
        out["start." + short(name)] = p.detach().clone()
    pixels, labels = expected["in.pixel_values"], expected["in.labels"]
    loss = model(pixel_values=pixels, labels=labels).loss
    loss.backward()
    out["loss"] = loss.detach().reshape(1)
    for name, p in adapters.items():
        out["grad." + short(name)] = p.grad
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE).step()
    merged = model.merge_and_unload()
    for name, p in merged.state_dict().items():
        out["merged." + short(name)] = p
    save_file({key: value.contiguous() for key, value in out.items()}, ROOT / "test/fixtures/lora.safetensors")
    print("wrote", len(out), "tensors")


def short(name: str) -> str:
    """The name of transformers 4, without prefixes."""
    name = name.removeprefix("base_model.model.").removeprefix("vit.").replace(".default", "")
    for new, old in NAMES.items():
        name = name.replace(new, old)
    return name


if __name__ == "__main__":
    main()
