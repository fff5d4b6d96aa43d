#!/usr/bin/env python3
"""Logistic regressions by scikit-learn, which test/suite/logistic_regression.test.ts compares ours with.

Features are those of models/fashion/test1000.safetensors (CLS before the final norm), prepared as MSN's low-shot
evaluation does. MSN's objective (1/n) sum CE + (lambda/2n) |W|^2 is scikit-learn's C sum CE + |W|^2 / 2 with C = 1/lambda.

Usage: python test/reference/make_logistic_regression.py   (numpy, scikit-learn, safetensors)
Writes test/fixtures/few_shot/logistic_regression.safetensors.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from sklearn.linear_model import LogisticRegression

ROOT = Path(__file__).resolve().parents[2]
# name: images a class, classes, lambda, intercept
CASES = {
    "one": (1, 10, 0.0025, False),
    "few": (5, 10, 0.0025, False),
    "few_intercept": (5, 10, 0.0025, True),
    "many": (20, 10, 0.075, False),
    "many_intercept": (20, 10, 0.075, True),
    "weak": (20, 10, 0.00025, False),
    "three": (7, 3, 1.0, True),
}


def prepare(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    x -= x.mean(axis=1, keepdims=True)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def main() -> None:
    data = load_file(ROOT / "models/fashion/test1000.safetensors")
    features, labels = prepare(data["out.cls_before_norm"]), data["labels"]
    out = {}
    for name, (shots, classes, penalty, intercept) in CASES.items():
        # The first images of each class, class by class; every tenth of all is judged.
        rows = np.concatenate([np.flatnonzero(labels == c)[:shots] for c in range(classes)])
        solver = LogisticRegression(
            C=1 / penalty, fit_intercept=intercept, solver="newton-cg", tol=1e-12, max_iter=10_000
        )
        solver.fit(features[rows], labels[rows])
        out[f"{name}.weight"] = solver.coef_.astype(np.float32)
        out[f"{name}.bias"] = np.broadcast_to(solver.intercept_, (classes,)).astype(np.float32)
        out[f"{name}.probs"] = solver.predict_proba(features[7::10]).astype(np.float32)
        gradient = solver.predict_proba(features[rows])
        gradient[np.arange(len(rows)), labels[rows]] -= 1
        gradient = gradient.T @ features[rows] + penalty * solver.coef_
        print(name, "gradient", np.abs(gradient).max(), "weight", np.abs(solver.coef_).max())
    target = ROOT / "test/fixtures/few_shot/logistic_regression.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: np.ascontiguousarray(value) for key, value in out.items()}, target)
    print(target, target.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
