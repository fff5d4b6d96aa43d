"""Writes test/fixtures/optimizers.json: what PyTorch's optimisers make of a parameter, step by step.

Usage: python test/reference/make_optimizers.py  (needs torch)

AdamW and SGD are torch.optim's. LARS is the formula of NVIDIA apex's LARC without clipping
(https://github.com/NVIDIA/apex, apex/parallel/LARC.py) around torch.optim.SGD.
"""

import json
from pathlib import Path

import torch

STEPS = 6
SIZE = 11  # not a multiple of four


def lars(parameter, options):
    """One step's change of the gradient, before SGD without weight decay takes it."""
    norm, gradient_norm = parameter.norm(), parameter.grad.norm()
    if norm != 0 and gradient_norm != 0:
        weight_decay = options["weight_decay"]
        rate = options["trust_coefficient"] * norm / (gradient_norm + weight_decay * norm + options["epsilon"])
        parameter.grad += weight_decay * parameter
        parameter.grad *= rate


def run(name, options, start=None):
    generator = torch.Generator().manual_seed(len(name) + 7)
    parameter = torch.randn(SIZE, generator=generator) if start is None else start.clone()
    first = parameter.clone()
    parameter.requires_grad_()
    common = {"lr": options["learning_rate"]}
    if name == "adamw":
        betas = (options["beta1"], options["beta2"])
        optimizer = torch.optim.AdamW(
            [parameter], betas=betas, eps=options["epsilon"], weight_decay=options["weight_decay"], **common
        )
    elif name == "sgd":
        optimizer = torch.optim.SGD(
            [parameter],
            momentum=options["momentum"],
            weight_decay=options["weight_decay"],
            nesterov=options["nesterov"],
            **common,
        )
    else:
        optimizer = torch.optim.SGD([parameter], momentum=options["momentum"], **common)
    gradients, parameters = [], []
    for _ in range(STEPS):
        gradient = torch.randn(SIZE, generator=generator)
        gradients.append(gradient.tolist())
        parameter.grad = gradient * options["gradient_scale"]
        if name == "lars":
            with torch.no_grad():
                lars(parameter, options)
        optimizer.step()
        parameters.append(parameter.detach().tolist())
    return {
        "optimizer": name,
        "options": options,
        "parameter": first.tolist(),
        "gradients": gradients,
        "parameters": parameters,
    }


def main():
    adamw = {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.1}
    sgd = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": False}
    lars_options = {
        "learning_rate": 0.5,
        "momentum": 0.9,
        "weight_decay": 1e-3,
        "trust_coefficient": 0.02,
        "epsilon": 1e-8,
    }
    plain, half = {"gradient_scale": 1.0}, {"gradient_scale": 0.5}
    cases = [
        run("adamw", adamw | plain),
        run("adamw", adamw | half | {"beta1": 0.5, "beta2": 0.9, "epsilon": 0.01, "weight_decay": 0.0}),
        run("sgd", sgd | plain),
        run("sgd", sgd | half | {"nesterov": True}),
        run("sgd", sgd | plain | {"momentum": 0.0}),
        run("lars", lars_options | plain),
        run("lars", lars_options | half | {"momentum": 0.0}),
        run("lars", lars_options | plain, start=torch.zeros(SIZE)),
    ]
    path = Path(__file__).parent.parent / "fixtures" / "optimizers.json"
    path.write_text(json.dumps({"torch": torch.__version__, "cases": cases}) + "\n")


if __name__ == "__main__":
    main()
