"""LogME against the evidence that its definition gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from probe_sets import clusters
from scipy.optimize import minimize

from lit_ft.probes.heads.logme import logme


def evidence(features: np.ndarray, wanted: np.ndarray, alpha: float, beta: float) -> float:
    """The log evidence of an output, equation 2 of the paper, without a decomposition."""
    num, width = features.shape
    precision = alpha * np.eye(width) + beta * features.T @ features
    mean = beta * np.linalg.solve(precision, features.T @ wanted)
    fit = beta / 2 * np.square(features @ mean - wanted).sum() + alpha / 2 * np.square(mean).sum()
    constant = num / 2 * math.log(beta / (2 * math.pi)) + width / 2 * math.log(alpha)
    return float(constant - fit - np.linalg.slogdet(precision)[1] / 2)


@pytest.mark.parametrize(("num", "width"), [(80, 10), (30, 50)])
def test_it_is_the_greatest_evidence(num: int, width: int) -> None:
    features, classes = clusters(num, width, 3)
    features = (features - features.mean(dim=0)) / features.std(dim=0)
    outputs = torch.nn.functional.one_hot(classes).double().numpy()
    greatest = []
    for wanted in outputs.T:

        def objective(logs: np.ndarray, wanted: np.ndarray = wanted) -> float:
            return -evidence(features.double().numpy(), wanted, *np.exp(logs))

        greatest.append(-minimize(objective, [0.0, 0.0], method="Nelder-Mead", tol=1e-10).fun / num)
    assert logme(features, classes) == pytest.approx(np.mean(greatest), rel=1e-5)


def test_features_that_know_the_class_score_higher() -> None:
    features, classes = clusters(100, 20, 2)
    noise = torch.randn(100, 20, generator=torch.Generator().manual_seed(3))
    features = (features - features.mean(dim=0)) / features.std(dim=0)
    assert logme(features, classes) > logme(noise, classes) + 0.05


@pytest.mark.parametrize("features", [[1.0, -1.0, 1.0, -1.0], [0.0] * 4], ids=["of_no_class", "zero"])
def test_features_that_tell_nothing_have_the_evidence_of_noise_alone(features: list[float]) -> None:
    beta = 2.0  # the inverse of the mean square of each output, which is 1 for two of four images
    expected = math.log(beta / (2 * math.pi)) / 2 - 0.5
    assert logme(torch.tensor(features).unsqueeze(1), torch.tensor([0, 0, 1, 1])) == pytest.approx(expected, rel=1e-9)
