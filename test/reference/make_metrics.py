#!/usr/bin/env python3
"""Metrics by scikit-learn: test/fixtures/metrics.json.

  python make_metrics.py   (numpy, scikit-learn)
"""
import json
from pathlib import Path

import numpy as np
from sklearn import metrics as m


def main() -> None:
    rng = np.random.default_rng(5)
    logits, labels = rng.normal(size=(40, 5)), rng.integers(0, 4, 40)
    best = logits.argmax(1)
    precision, recall, f1, support = m.precision_recall_fscore_support(labels, best, labels=range(5), zero_division=0)
    macro = m.precision_recall_fscore_support(labels, best, average="macro", zero_division=0)[:3]
    # Rounded scores have ties; the last class has no image.
    scores, several = rng.normal(size=(40, 4)).round(1), (rng.random((40, 4)) < [0.3, 0.6, 0.1, 0]).astype(int)
    chosen = (scores > 0).astype(int)
    f1_of = lambda average: m.f1_score(several, chosen, average=average, zero_division=0)
    predicted, numbers = rng.normal(size=(40, 2)), rng.normal(size=(40, 2))
    numbers += predicted
    out = {
        "single": {
            "logits": logits.tolist(), "labels": labels.tolist(), "accuracy": m.accuracy_score(labels, best),
            "classes": [list(map(float, row)) for row in zip(precision, recall, f1, support)], "macro": list(map(float, macro)),
        },
        "multi": {
            "scores": scores.tolist(), "labels": several.tolist(), "f1_micro": f1_of("micro"), "f1_macro": f1_of("macro"),
            "mean_average_precision": float(np.mean([m.average_precision_score(several[:, c], scores[:, c]) for c in range(3)])),
        },
        "regression": {
            "predictions": predicted.tolist(), "labels": numbers.tolist(),
            "mae": m.mean_absolute_error(numbers, predicted), "r2": m.r2_score(numbers, predicted),
        },
    }
    target = Path(__file__).resolve().parents[1] / "fixtures/metrics.json"
    target.write_text(json.dumps(out) + "\n")


if __name__ == "__main__":
    main()
