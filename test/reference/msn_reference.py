#!/usr/bin/env python3
"""A reference run of MSN's pre-training: a tiny model, fixed views, fixed dropped patches, step by step in PyTorch.

  python msn_reference.py OUT [--seed N]

Needs: pip install torch transformers safetensors numpy
OUT becomes a folder that `from_pretrained` can open: the encoder as it starts. Beside it expected.safetensors, whose
tensors test/fixtures/pretraining/README.md explains. The method is that of "Masked Siamese Networks for Label-Efficient
Learning" (arXiv 2204.07141) and of its code (facebookresearch/msn); this is a writing of our own.
"""
import argparse, math, pathlib
import torch
from torch import nn
from torch.nn import functional as F
from safetensors.torch import save_file
from transformers import ViTMSNConfig, ViTMSNModel
from make_fixtures import randomise, save_case, v4

CONFIG = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=4)
HEAD_HIDDEN, HEAD_OUT, PROTOTYPES = 48, 24, 12
IMAGES, BATCH, FOCAL_VIEWS, FOCAL_SIZE = 16, 8, 2, 8
PATCHES, PATCH_DROP = 16, 0.45
STEPS_PER_EPOCH, EPOCHS, WARMUP_EPOCHS, STRETCH = 5, 4, 1, 1.25
LR, WD, MOMENTUM, MAX_NORM = (2e-4, 1e-3, 1e-6), (0.04, 0.4), (0.996, 1.0), 3.0
TAU, SHARPEN = 0.1, 0.25
# name: Sinkhorn, weight of mean-entropy maximisation, weight of the anchors' entropy, steps
RUNS = {"sinkhorn": (True, 1.0, 0.0, 20), "plain": (False, 5.0, 0.1, 6)}


class Head(nn.Module):
    """Linear, batch norm, GELU twice, then Linear: the names are the original checkpoints'."""

    def __init__(self):
        super().__init__()
        self.fc1, self.bn1 = nn.Linear(CONFIG["hidden_size"], HEAD_HIDDEN), nn.BatchNorm1d(HEAD_HIDDEN)
        self.fc2, self.bn2 = nn.Linear(HEAD_HIDDEN, HEAD_HIDDEN), nn.BatchNorm1d(HEAD_HIDDEN)
        self.fc3 = nn.Linear(HEAD_HIDDEN, HEAD_OUT)

    def forward(self, x):
        x = F.gelu(self.bn1(self.fc1(x)))
        return self.fc3(F.gelu(self.bn2(self.fc2(x))))


class Branch(nn.Module):
    """Encoder and head. Each group of views of one size goes through the batch norms on its own."""

    def __init__(self, config, seed):
        super().__init__()
        self.encoder, self.head = ViTMSNModel(config), Head()
        randomise(self.encoder, seed)
        g = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for name, p in self.head.named_parameters():
                noise = torch.randn(p.shape, generator=g)
                p.copy_(1 + 0.1 * noise if "bn" in name and name.endswith("weight") else 0.15 * noise)

    def forward(self, pixels, kept=None):
        x = self.encoder.embeddings(pixels, interpolate_pos_encoding=True)
        if kept is not None:
            x = x[:, torch.cat([torch.zeros(1, dtype=torch.long), 1 + kept])]
        for layer in self.encoder.layers:
            x = layer(x)
        return self.head(self.encoder.layernorm(x)[:, 0])


def similarities(z, prototypes):
    """[B, K] probabilities of the prototypes."""
    return (F.normalize(z, dim=1) @ F.normalize(prototypes, dim=1).T / TAU).softmax(dim=1)


def sharpen(p):
    p = p ** (1 / SHARPEN)
    return p / p.sum(dim=1, keepdim=True)


def sinkhorn(targets, iterations=3):
    """Rows of the transpose to equal sums, then columns, over and over; [B, K] whose rows sum to 1."""
    q = targets.T / targets.sum()
    prototypes, batch = q.shape
    for _ in range(iterations):
        q = q / q.sum(dim=1, keepdim=True) / prototypes
        q = q / q.sum(dim=0, keepdim=True) / batch
    return (q * batch).T


def msn_loss(anchors, target, prototypes, use_sinkhorn, me_max_weight, entropy_weight):
    """anchors [views·B, D], view by view, and target [B, D], all after the head."""
    probs = similarities(anchors, prototypes)
    with torch.no_grad():
        sharp = sharpen(similarities(target, prototypes))
        targets = sinkhorn(sharp) if use_sinkhorn else sharp
    tiled = targets.repeat(len(anchors) // len(target), 1)
    log_probs = probs.log()
    cross_entropy = -(tiled * log_probs).sum(dim=1).mean()
    mean = probs.mean(dim=0)
    me_max = (mean * mean.log()).sum() + math.log(len(prototypes))
    entropy = -(probs * log_probs).sum(dim=1).mean()
    loss = cross_entropy + me_max_weight * me_max + entropy_weight * entropy
    return dict(loss=loss, cross_entropy=cross_entropy, me_max=me_max, entropy=entropy, probs=probs, sharp=sharp, targets=targets)


class Schedules:
    """Step counts begin at 1 for the learning rate and weight decay, at 0 for the momentum; all are stretched by 1.25."""

    def __init__(self, steps_per_epoch, epochs, warmup_epochs):
        self.total = steps_per_epoch * epochs * STRETCH
        self.warmup = int(warmup_epochs * steps_per_epoch)

    def lr(self, step):
        start, top, final = LR
        n = step + 1
        if n < self.warmup:
            return start + n / max(1, self.warmup) * (top - start)
        progress = (n - self.warmup) / max(1, int(self.total) - self.warmup)
        return max(final, final + (top - final) * 0.5 * (1 + math.cos(math.pi * progress)))

    def wd(self, step):
        first, last = WD
        value = last + (first - last) * 0.5 * (1 + math.cos(math.pi * (step + 1) / int(self.total)))
        return max(last, value) if last <= first else min(last, value)

    def momentum(self, step):
        first, last = MOMENTUM
        return first + (last - first) / self.total * step


def views(seed, dtype):
    """Views of four kinds of waves: a target, an anchor and focal ones. Another generator's noise in each."""
    g = torch.Generator().manual_seed(seed)
    kind = torch.arange(IMAGES) % 4
    def make(size):
        y, x = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="ij")
        waves = torch.stack([torch.sin(x * (0.3 + 0.25 * k) + y * (1.1 - 0.3 * k)) for k in range(4)])
        return waves[kind][:, None] + 0.5 * torch.randn(IMAGES, 3, size, size, generator=g)
    target, anchor = make(16), make(16)
    focal = torch.stack([make(FOCAL_SIZE) for _ in range(FOCAL_VIEWS)])
    kept_count = math.floor((1 - PATCH_DROP) * PATCHES)
    kept = torch.stack([torch.randperm(PATCHES, generator=g)[:kept_count] for _ in range(20)])
    return target.to(dtype), anchor.to(dtype), focal.to(dtype), kept


def parameter_groups(online, prototypes):
    """Weight decay for what has two dimensions or more (positions and CLS too), but batch norms and prototypes."""
    named = list(online.named_parameters())
    decayed = [p for n, p in named if "bias" not in n and "bn" not in n and p.dim() != 1]
    others = [p for n, p in named if "bias" in n or "bn" in n or p.dim() == 1]
    return [dict(params=decayed, decays=True), dict(params=others, weight_decay=0.0), dict(params=[prototypes], weight_decay=0.0)]


def start(seed, dtype):
    torch.manual_seed(seed)
    config = ViTMSNConfig(**CONFIG, attn_implementation="eager")
    online = Branch(config, seed).to(dtype).train()
    target = Branch(config, seed).to(dtype).train()
    target.load_state_dict(online.state_dict())
    bound = 1 / math.sqrt(HEAD_OUT)
    prototypes = nn.Parameter(((torch.rand(PROTOTYPES, HEAD_OUT, generator=torch.Generator().manual_seed(seed + 2)) * 2 - 1) * bound).to(dtype))
    return config, online, target, prototypes


def names_of(branch):
    """A branch's parameters and buffers: the encoder's by the hub's keys, the head's by their own."""
    for name, value in branch.state_dict().items():
        if "num_batches_tracked" in name:
            continue
        yield (v4(name.removeprefix("encoder.")) if name.startswith("encoder.") else name), value


def run(name, seed, dtype):
    """The losses of each step, the first step's intermediate values and gradients, and everything in the end."""
    use_sinkhorn, me_max_weight, entropy_weight, steps = RUNS[name]
    _, online, target, prototypes = start(seed, dtype)
    target_view, anchor_view, focal_views, kept = views(seed + 3, dtype)
    schedules = Schedules(STEPS_PER_EPOCH, EPOCHS, WARMUP_EPOCHS)
    groups = parameter_groups(online, prototypes)
    optimizer = torch.optim.AdamW(groups)
    record, out = {key: [] for key in ("loss", "cross_entropy", "me_max", "entropy", "grad_norm", "lr", "wd", "momentum")}, {}
    for step in range(steps):
        at = torch.arange(step * BATCH, (step + 1) * BATCH) % IMAGES
        with torch.no_grad():
            z_target = target(target_view[at])
        # The full-size anchor loses patches; the focal ones, of another size, are a group of their own and keep theirs.
        z = torch.cat([online(anchor_view[at], kept[step]), online(focal_views[:, at].flatten(0, 1))])
        terms = msn_loss(z, z_target, prototypes, use_sinkhorn, me_max_weight, entropy_weight)
        optimizer.zero_grad()
        terms["loss"].backward()
        if step == 0:
            out.update({"first.z_target": z_target, "first.z": z, "first.probs": terms["probs"], "first.sharp": terms["sharp"], "first.targets": terms["targets"]})
            out.update({"grad.prototypes": prototypes.grad.clone()})
            named = dict(online.named_parameters())
            out.update({"grad." + key: named[n].grad.clone() for n, key in ((n, v4(n.removeprefix("encoder."))) for n in named)})
        norm = nn.utils.clip_grad_norm_(online.parameters(), MAX_NORM)
        for group in optimizer.param_groups:
            group["lr"] = schedules.lr(step)
            if group.get("decays"):
                group["weight_decay"] = schedules.wd(step)
        optimizer.step()
        with torch.no_grad():
            m = schedules.momentum(step)
            for p, q in zip(target.parameters(), online.parameters()):
                p.mul_(m).add_((1 - m) * q)
        for key in ("loss", "cross_entropy", "me_max", "entropy"):
            record[key].append(terms[key].item())
        for key, value in (("grad_norm", norm.item()), ("lr", schedules.lr(step)), ("wd", schedules.wd(step)), ("momentum", m)):
            record[key].append(value)
    out.update({"out." + key: torch.tensor(values, dtype=torch.float64) for key, values in record.items()})
    out.update({"final.prototypes": prototypes})
    out.update({"final." + key: value for key, value in names_of(online)})
    out.update({"final_target." + key: value for key, value in names_of(target)})
    return {f"{name}.{key}": value.detach() for key, value in out.items()}


def parts(seed):
    """Each piece on its own: batch norm, Sinkhorn, and the loss with its gradients, on random numbers; schedules of a longer run."""
    g = torch.Generator().manual_seed(seed + 4)
    x = (2 * torch.randn(7, 5, generator=g) + 1).requires_grad_()
    norm = nn.BatchNorm1d(5)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * torch.randn(5, generator=g)), norm.bias.copy_(0.3 * torch.randn(5, generator=g))
    gradient = torch.randn(7, 5, generator=g)
    y = norm(x)
    y.backward(gradient)
    out = {"bn.x": x, "bn.weight": norm.weight, "bn.bias": norm.bias, "bn.y": y, "bn.dy": gradient, "bn.dx": x.grad,
           "bn.dweight": norm.weight.grad, "bn.dbias": norm.bias.grad, "bn.running_mean": norm.running_mean,
           "bn.running_var": norm.running_var, "bn.eval": norm.eval()(x)}
    targets = sharpen((3 * torch.randn(6, 10, generator=g)).softmax(dim=1))
    out.update({"sinkhorn.in": targets, "sinkhorn.out": sinkhorn(targets)})
    z, z_target = torch.randn(12, 8, generator=g).requires_grad_(), torch.randn(6, 8, generator=g)
    prototypes = torch.randn(10, 8, generator=g).requires_grad_()
    out.update({"loss.z": z, "loss.z_target": z_target, "loss.prototypes": prototypes})
    for name, (use_sinkhorn, me_max_weight, entropy_weight, _) in RUNS.items():
        z.grad = prototypes.grad = None
        terms = msn_loss(z, z_target, prototypes, use_sinkhorn, me_max_weight, entropy_weight)
        terms["loss"].backward()
        values = [terms[key] for key in ("loss", "cross_entropy", "me_max", "entropy")]
        out.update({f"loss.{name}.terms": torch.stack(values), f"loss.{name}.dz": z.grad.clone(), f"loss.{name}.dprototypes": prototypes.grad.clone()})
    longer = Schedules(30, 10, 1.5)
    for key in ("lr", "wd", "momentum"):
        out["schedule." + key] = torch.tensor([getattr(longer, key)(step) for step in range(300)], dtype=torch.float64)
    return {"part." + key: value.detach() for key, value in out.items()}


def main(folder, seed):
    config, online, _, prototypes = start(seed, torch.float32)
    save_case(folder, online.encoder, config)
    target_view, anchor_view, focal_views, kept = views(seed + 3, torch.float32)
    tensors = {"in.target": target_view, "in.anchor": anchor_view, "in.focal": focal_views, "in.kept": kept.to(torch.int32), "in.prototypes": prototypes.detach()}
    tensors.update({"in." + key: value for key, value in names_of(online) if key.startswith("head.")})
    tensors.update(parts(seed))
    for name in RUNS:
        found, precise = run(name, seed, torch.float32), run(name, seed, torch.float64)
        # What is left in the end is kept of the first run alone.
        tensors.update({key: value for key, value in found.items() if name == "sinkhorn" or ".final" not in key})
        loss, exact = found[f"{name}.out.loss"], precise[f"{name}.out.loss"]
        norms = (found[f"{name}.out.grad_norm"] / precise[f"{name}.out.grad_norm"] - 1).abs().max()
        print(f"{name}: loss {loss[0]:.5f} -> {loss[-1]:.5f}; float64 differs by {((loss - exact) / exact).abs().max():.1e} of a loss, {norms:.1e} of a norm")
        print(f"  gradient norms {found[f'{name}.out.grad_norm'].min():.3f} to {found[f'{name}.out.grad_norm'].max():.3f}")
        apart = {key: (value.double() - precise[key]).abs().max().item() for key, value in found.items() if ".final" in key}
        print("  furthest from float64:", sorted(((round(v, 6), k) for k, v in apart.items()), reverse=True)[:8])
    tensors = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    save_file({key: value.detach().clone().contiguous() for key, value in tensors.items()}, folder / "expected.safetensors")
    print((folder / "expected.safetensors").stat().st_size, "bytes")


if __name__ == "__main__":
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("out", type=pathlib.Path)
    a.add_argument("--seed", type=int, default=11)
    o = a.parse_args()
    main(o.out, o.seed)
