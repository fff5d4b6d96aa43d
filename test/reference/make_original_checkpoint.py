#!/usr/bin/env python3
"""A checkpoint as MSN's own code writes it (facebookresearch/msn: save_checkpoint in msn_train.py), after one epoch of the
reference run of msn_reference.py, by torch.save: both encoders with their heads, fused queries, keys and values, prototypes, the state
of AdamW in the original's parameter order, and what else is in there.

  python make_original_checkpoint.py   (torch, transformers, safetensors, numpy)

Writes test/fixtures/original_checkpoint.pth.tar. A run that resumes from it must see the losses of msn_reference.py's steps 6 to 20.
"""

from pathlib import Path

import torch
from torch import nn

import msn_reference as msn
from make_fixtures import v4

ROOT = Path(__file__).resolve().parents[2]
SEED = 11  # as test/fixtures/pretraining
LAYER = {
    "layernorm_before": "norm1",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
ORDER = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]


def original(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors by the hub's keys and `head.*` in the original's layout and order."""
    out = {"cls_token": tensors["embeddings.cls_token"], "pos_embed": tensors["embeddings.position_embeddings"]}
    for what in ("weight", "bias"):
        out[f"patch_embed.proj.{what}"] = tensors[f"embeddings.patch_embeddings.projection.{what}"]
    for i in range(msn.CONFIG["num_hidden_layers"]):
        layer = f"encoder.layer.{i}."
        named = {}
        for what in ("weight", "bias"):
            parts = [tensors[f"{layer}attention.attention.{part}.{what}"] for part in ("query", "key", "value")]
            named[f"attn.qkv.{what}"] = torch.cat(parts)
            for ours, theirs in LAYER.items():
                named[f"{theirs}.{what}"] = tensors[f"{layer}{ours}.{what}"]
        out.update({f"blocks.{i}.{name}.{what}": named[f"{name}.{what}"] for name in ORDER for what in ("weight", "bias")})
    for what in ("weight", "bias"):
        out[f"norm.{what}"] = tensors[f"layernorm.{what}"]
    for name in ("fc1", "bn1", "fc2", "bn2", "fc3"):
        for what in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            if f"head.{name}.{what}" in tensors:
                out[f"fc.{name}.{what}"] = tensors[f"head.{name}.{what}"]
    return {name: value.detach().clone() for name, value in out.items()}


def hub_key(name: str) -> str:
    return v4(name.removeprefix("encoder.")) if name.startswith("encoder.") else name


def state_dict(branch: nn.Module) -> dict[str, torch.Tensor]:
    named = original({hub_key(name): value for name, value in branch.state_dict().items()})
    return {f"module.{name}": value for name, value in named.items()}


def one_epoch():
    """The first steps of the reference's run with Sinkhorn."""
    _, online, target, prototypes = msn.start(SEED, torch.float32)
    target_view, anchor_view, focal_views, kept = msn.views(SEED + 3, torch.float32)
    schedules = msn.Schedules(msn.STEPS_PER_EPOCH, msn.EPOCHS, msn.WARMUP_EPOCHS)
    optimizer = torch.optim.AdamW(msn.parameter_groups(online, prototypes))
    use_sinkhorn, me_max_weight, entropy_weight, _ = msn.RUNS["sinkhorn"]
    loss = 0.0
    for step in range(msn.STEPS_PER_EPOCH):
        at = torch.arange(step * msn.BATCH, (step + 1) * msn.BATCH) % msn.IMAGES
        with torch.no_grad():
            z_target = target(target_view[at])
        z = torch.cat([online(anchor_view[at], kept[step]), online(focal_views[:, at].flatten(0, 1))])
        terms = msn.msn_loss(z, z_target, prototypes, use_sinkhorn, me_max_weight, entropy_weight)
        optimizer.zero_grad()
        terms["loss"].backward()
        nn.utils.clip_grad_norm_(online.parameters(), msn.MAX_NORM)
        for group in optimizer.param_groups:
            group["lr"] = schedules.lr(step)
            if group.get("decays"):
                group["weight_decay"] = schedules.wd(step)
        optimizer.step()
        with torch.no_grad():
            m = schedules.momentum(step)
            for p, q in zip(target.parameters(), online.parameters()):
                p.mul_(m).add_((1 - m) * q)
        loss = terms["loss"].item()
    return online, target, prototypes, optimizer, loss


def optimizer_state(online: nn.Module, prototypes: nn.Parameter, optimizer: torch.optim.AdamW) -> dict:
    """AdamW's state_dict as the original's parameters would have it: fused ones are one, and numbered in its order."""
    slots = {}
    for slot in ("exp_avg", "exp_avg_sq"):
        slots[slot] = original({hub_key(name): optimizer.state[p][slot] for name, p in online.named_parameters()})
    names = list(slots["exp_avg"])
    is_decayed = lambda name: "bias" not in name and "bn" not in name and slots["exp_avg"][name].dim() != 1
    order = [n for n in names if is_decayed(n)], [n for n in names if not is_decayed(n)]
    state = {}
    for index, name in enumerate([*order[0], *order[1]]):
        state[index] = {"step": torch.tensor(float(msn.STEPS_PER_EPOCH)), **{slot: slots[slot][name] for slot in slots}}
    state[len(names)] = {k: v.clone() for k, v in optimizer.state[prototypes].items()}
    numbers = [list(range(len(order[0]))), list(range(len(order[0]), len(names))), [len(names)]]
    groups = [dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.04, amsgrad=False, maximize=False, foreach=None, params=n) for n in numbers]
    return {"state": state, "param_groups": groups}


def main() -> None:
    online, target, prototypes, optimizer, loss = one_epoch()
    save = {
        "encoder": state_dict(online),
        "opt": optimizer_state(online, prototypes, optimizer),
        "prototypes": prototypes.data,
        "target_encoder": state_dict(target),
        "epoch": 1,
        "loss": loss,
        "batch_size": msn.BATCH,
        "world_size": 1,
        "lr": 1e-3,
        "temperature": msn.TAU,
    }
    path = ROOT / "test/fixtures/original_checkpoint.pth.tar"
    torch.save(save, path)
    print(f"wrote {path.relative_to(ROOT)}, {path.stat().st_size} bytes; the last loss was {loss:.6f}")


if __name__ == "__main__":
    main()
