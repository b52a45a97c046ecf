"""Images that are unlike the others of their class, by distances of features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_ft.data.split import rows_by_class

NEIGHBOURS = 10
"""With fewer, some images of another kind in a class are each other's neighbours."""

_MOST_REFERENCES = 5000
"""Images of a class that all of its images are compared with; evenly spaced ones of more."""


def distances_to_neighbours(features: Tensor, classes: Tensor, num_neighbours: int = NEIGHBOURS) -> Tensor:
    """How far each image is from the nearest images of its class: ``(N,)``, from 0 to 2, NaN without another image.

    It is the distance of normalised features to the k-th nearest neighbour (Sun et al. 2022, Out-of-Distribution
    Detection with Deep Nearest Neighbors), k being at most the number of other images.

    Args:
        features: Standardised features ``(N, D)``.
        classes: Class of each image ``(N,)``.
        num_neighbours: k.
    """
    distances = torch.full((len(features),), float("nan"))
    for rows in rows_by_class(classes, 0):
        references = rows[:: max(1, -(-len(rows) // _MOST_REFERENCES))]
        nearest = min(num_neighbours, len(references) - 1)
        if nearest < 1:
            continue
        others = F.normalize(features[references].float(), dim=1)
        for part in torch.split(rows, 1024):
            apart = torch.cdist(F.normalize(features[part].float(), dim=1), others)
            apart[part.unsqueeze(1) == references] = float("inf")  # itself
            distances[part] = apart.kthvalue(nearest, dim=1).values.cpu()
    return distances
