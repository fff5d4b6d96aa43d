#!/usr/bin/env python3
"""Losses of logits and their gradients by PyTorch: test/fixtures/losses.json.

  python make_losses.py   (torch)
"""
import json
from pathlib import Path

import torch
from torch.nn import functional as F

TEMPERATURE, LAMBDA = 3.0, 0.4


def main() -> None:
    torch.manual_seed(3)
    logits = (3 * torch.randn(6, 4)).requires_grad_()
    teacher = 2 * torch.randn(6, 4)
    labels = torch.tensor([0, 3, -100, 2, 3, 1])
    soft = torch.randn(6, 4).softmax(-1)
    weights = torch.tensor([0.5, 2.0, 0.0, 1.25])
    divergence = lambda: F.kl_div(
        F.log_softmax(logits / TEMPERATURE, -1), F.softmax(teacher / TEMPERATURE, -1), reduction="batchmean"
    ) * TEMPERATURE**2
    cases = {
        "weighted": lambda: F.cross_entropy(logits, labels, weight=weights),
        "weighted_smoothed": lambda: F.cross_entropy(logits, labels, weight=weights, label_smoothing=0.2),
        "soft": lambda: F.cross_entropy(logits, soft),
        "soft_weighted_smoothed": lambda: F.cross_entropy(logits, soft, weight=weights, label_smoothing=0.1),
        "distillation": lambda: (1 - LAMBDA) * F.cross_entropy(logits, labels) + LAMBDA * divergence(),
    }
    out = {"logits": logits, "teacher": teacher, "labels": labels, "soft": soft, "weights": weights}
    out = {name: value.tolist() for name, value in out.items()}
    out |= {"temperature": TEMPERATURE, "lambda_param": LAMBDA, "cases": {}}
    for name, compute in cases.items():
        logits.grad = None
        loss = compute()
        loss.backward()
        out["cases"][name] = {"loss": loss.item(), "gradient": logits.grad.tolist()}
    target = Path(__file__).resolve().parents[1] / "fixtures/losses.json"
    target.write_text(json.dumps(out) + "\n")


if __name__ == "__main__":
    main()
