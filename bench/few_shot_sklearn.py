"""scikit-learn's logistic regression on the features that bench/few_shot.ts writes; prints each draw's accuracy as JSON.

MSN's objective (1/n) sum CE + (lambda/2n) |W|^2 is scikit-learn's C sum CE + |W|^2 / 2 with C = 1/lambda.
Usage: python few_shot_sklearn.py FOLDER SIZE CLASSES SHOTS DRAWS LAMBDA
"""

import json
import sys

import numpy as np
from sklearn.linear_model import LogisticRegression

folder, (size, classes, shots, draws), penalty = sys.argv[1], map(int, sys.argv[2:6]), float(sys.argv[6])
train = np.fromfile(f"{folder}/train.f32", np.float32).reshape(draws, classes * shots, size).astype(np.float64)
test = np.fromfile(f"{folder}/test.f32", np.float32).reshape(-1, size).astype(np.float64)
labels = np.repeat(np.arange(classes), shots)
truth = np.repeat(np.arange(classes), len(test) // classes)
found = []
for features in train:
    solver = LogisticRegression(C=1 / penalty, fit_intercept=False, solver="lbfgs", tol=1e-8, max_iter=100_000)
    found.append(float((solver.fit(features, labels).predict(test) == truth).mean()))
print(json.dumps(found))
