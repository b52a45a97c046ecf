"""Labels that others contradict."""

from __future__ import annotations

import torch
from probe_sets import clusters

from lit_ft.data.folds import make_folds
from lit_ft.probes.findings.label_issues import find_label_issues
from lit_ft.probes.heads.basis import Basis
from lit_ft.probes.heads.cross_validation import cross_validate
from lit_ft.probes.heads.solver import Targets


def test_ranking_and_estimate_of_a_table() -> None:
    probabilities = torch.tensor(
        [[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.6, 0.3, 0.1], [0.1, 0.7, 0.2], [0.45, 0.1, 0.45]]
    )
    labels = torch.tensor([0, 0, 0, 1, 2])
    issues = find_label_issues(probabilities, labels)
    # Thresholds: class 0 (0.9 + 0.2 + 0.6) / 3 = 0.567, class 1 0.7, class 2 0.45. Only image 1 is confidently another.
    assert issues.estimated == 1
    assert issues.ranked.tolist() == [1, 4, 2, 3, 0]
    torch.testing.assert_close(issues.margins, torch.tensor([0.8, -0.6, 0.3, 0.5, 0.0]))
    assert issues.suggested.tolist() == [1, 1, 1, 2, 0]


def test_class_without_images_is_no_issue() -> None:
    issues = find_label_issues(torch.tensor([[0.7, 0.1, 0.2], [0.2, 0.3, 0.5]]), torch.tensor([0, 2]))
    assert issues.estimated == 0


def test_flipped_labels_come_first() -> None:
    features, classes = clusters(300, 40, 3)
    flipped = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:15]
    labels = classes.clone()
    labels[flipped] = (labels[flipped] + 1) % 3
    result = cross_validate(Basis(features), Targets("softmax", labels, 3), make_folds(labels, 5, 2))
    issues = find_label_issues(result.logits.softmax(dim=2).mean(dim=0), labels)
    assert len(set(issues.ranked[:30].tolist()) & set(flipped.tolist())) >= 12
    assert 5 <= issues.estimated <= 60
