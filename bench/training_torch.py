"""PyTorch's time for a step of fine-tuning on the CPU, beside `npm run bench -- training`.

Usage: python bench/training_torch.py [--size small|base] [--batch 8] [--rounds 3] [--threads 1]; needs torch, transformers.
"""

import argparse
import time

import torch
from transformers import ViTMSNConfig, ViTMSNForImageClassification

SIZES = {"small": (384, 6, 1536), "base": (768, 12, 3072)}

parser = argparse.ArgumentParser()
parser.add_argument("--size", choices=SIZES, default="small")
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--threads", type=int, default=1)
args = parser.parse_args()

torch.set_num_threads(args.threads)
torch.manual_seed(0)
hidden, heads, inner = SIZES[args.size]
config = ViTMSNConfig(
    hidden_size=hidden, num_attention_heads=heads, intermediate_size=inner, num_labels=10
)
model = ViTMSNForImageClassification(config).train()
optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
pixel_values = torch.randn(args.batch, 3, 224, 224)
labels = torch.arange(args.batch) % 10


def forward():
    with torch.no_grad():
        model(pixel_values=pixel_values, labels=labels)


def step():
    model(pixel_values=pixel_values, labels=labels).loss.backward()
    optimiser.step()
    optimiser.zero_grad()


def best_of(run):
    run()
    times = []
    for _ in range(args.rounds):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return min(times)


forward_ms, step_ms = best_of(forward), best_of(step)
print(
    f"torch {torch.__version__}, {args.size}, batch {args.batch}, {args.threads} thread(s): "
    f"forward {forward_ms:.0f} ms, step {step_ms:.0f} ms, ratio {step_ms / forward_ms:.2f}"
)
