#!/usr/bin/env python3
"""A reference training run: a tiny ViTMSN trained by PyTorch on fixed batches, step by step.

  python make_training.py OUT [--seed N]

Needs: pip install torch transformers safetensors pillow torchvision numpy
OUT becomes a folder that `from_pretrained` can open: the model as it starts. Beside it expected.safetensors: the data
(in.pixel_values, in.labels; step i takes the next BATCH of them, round and round), and of each optimiser step the loss, the
gradients' norm before clipping and the learning rate (out.*), and the parameters in the end (final.*, the hub's keys).
AdamW with weight decay on the weights of linear layers and the patch projection alone, linear warm-up and cosine, clipping.
"""
import argparse, pathlib
import torch
from safetensors.torch import save_file
from transformers import ViTMSNConfig, ViTMSNForImageClassification, get_cosine_schedule_with_warmup
from make_fixtures import randomise, save_case, v4

CONFIG = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=4, num_labels=5)
IMAGES, BATCH, STEPS, WARMUP = 40, 8, 60, 6
ADAMW = dict(lr=2e-3, betas=(0.9, 0.999), eps=1e-8)
WEIGHT_DECAY, MAX_NORM = 0.05, 1.0

def data(seed):
    """Images of five kinds: waves of different direction and length, in noise."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(IMAGES) % CONFIG["num_labels"]
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    waves = torch.stack([torch.sin(x * (0.3 + 0.2 * k) + y * (1.1 - 0.2 * k)) for k in range(CONFIG["num_labels"])])
    noise = torch.randn(IMAGES, 3, 16, 16, generator=g)
    return waves[labels][:, None] + 0.7 * noise, labels

def groups(model):
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))}
    return [dict(params=[p for p in model.parameters() if (id(p) in decayed) == is_decayed], weight_decay=wd)
            for is_decayed, wd in ((True, WEIGHT_DECAY), (False, 0.0))]

def run(out, seed):
    torch.manual_seed(seed)
    config = ViTMSNConfig(**CONFIG, attn_implementation="eager")
    model = ViTMSNForImageClassification(config).train()
    randomise(model, seed)
    save_case(out, model, config)
    pixel_values, labels = data(seed + 1)
    optimizer = torch.optim.AdamW(groups(model), **ADAMW)
    scheduler = get_cosine_schedule_with_warmup(optimizer, WARMUP, STEPS)
    losses, norms, rates = [], [], []
    for step in range(STEPS):
        at = torch.arange(step * BATCH, (step + 1) * BATCH) % IMAGES
        loss = model(pixel_values=pixel_values[at], labels=labels[at]).loss
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM).item())
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step(); scheduler.step(); optimizer.zero_grad()
    tensors = {"in.pixel_values": pixel_values, "in.labels": labels, "out.loss": torch.tensor(losses), "out.grad_norm": torch.tensor(norms),
               "out.learning_rate": torch.tensor(rates), **{"final." + v4(k): v.detach() for k, v in model.state_dict().items()}}
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, out / "expected.safetensors")
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")

if __name__ == "__main__":
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("out", type=pathlib.Path); a.add_argument("--seed", type=int, default=5)
    o = a.parse_args(); run(o.out, o.seed)
