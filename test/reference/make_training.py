#!/usr/bin/env python3
"""A reference training run: a tiny ViTMSN trained by transformers' Trainer on fixed batches, step by step.

  python make_training.py OUT [--seed N]

Needs: pip install torch transformers accelerate safetensors pillow torchvision numpy
OUT becomes a folder that `from_pretrained` can open: the model as it starts. Next to it expected.safetensors: the data
(in.pixel_values, in.labels; step i takes the next BATCH of them, round and round), and of each optimiser step the loss, the
gradients' norm before clipping and the learning rate (out.*), and the parameters in the end (final.*, the hub's keys).
AdamW with the Trainer's choice of decayed parameters, linear warm-up and cosine, clipping.
"""
import argparse, pathlib, tempfile
import torch
from safetensors.torch import save_file
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments, ViTMSNConfig, ViTMSNForImageClassification
from make_fixtures import randomise, save_case, v4

CONFIG = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=4, num_labels=5)
IMAGES, BATCH, STEPS, WARMUP = 40, 8, 60, 6
ARGS = dict(learning_rate=2e-3, weight_decay=0.05, max_grad_norm=1.0, lr_scheduler_type="cosine", warmup_steps=WARMUP,
            max_steps=STEPS, per_device_train_batch_size=BATCH, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True)

def data(seed):
    """Images of five kinds: waves of different direction and length, in noise."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(IMAGES) % CONFIG["num_labels"]
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    waves = torch.stack([torch.sin(x * (0.3 + 0.2 * k) + y * (1.1 - 0.2 * k)) for k in range(CONFIG["num_labels"])])
    noise = torch.randn(IMAGES, 3, 16, 16, generator=g)
    return waves[labels][:, None] + 0.7 * noise, labels

class InOrder(Trainer):
    """Takes the images in order, and records each step's loss, which the log may round."""
    losses: list

    def _get_train_sampler(self, dataset=None):
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, model, inputs, *args, **kwargs):
        result = super().compute_loss(model, inputs, *args, **kwargs)
        self.losses.append((result[0] if isinstance(result, tuple) else result).item())
        return result

def run(out, seed):
    torch.manual_seed(seed)
    config = ViTMSNConfig(**CONFIG, attn_implementation="eager")
    model = ViTMSNForImageClassification(config).train()
    randomise(model, seed)
    save_case(out, model, config)
    pixel_values, labels = data(seed + 1)
    examples = [dict(pixel_values=x, labels=y) for x, y in zip(pixel_values, labels)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = InOrder(model=model, args=TrainingArguments(output_dir=folder, **ARGS), train_dataset=examples)
        trainer.losses = losses = []
        trainer.train()
    steps = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    norms, rates = ([entry[name] for entry in steps] for name in ("grad_norm", "learning_rate"))
    tensors = {"in.pixel_values": pixel_values, "in.labels": labels, "out.loss": torch.tensor(losses), "out.grad_norm": torch.tensor(norms),
               "out.learning_rate": torch.tensor(rates), **{"final." + v4(k): v.detach() for k, v in model.state_dict().items()}}
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, out / "expected.safetensors")
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")

if __name__ == "__main__":
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("out", type=pathlib.Path); a.add_argument("--seed", type=int, default=5)
    o = a.parse_args(); run(o.out, o.seed)
