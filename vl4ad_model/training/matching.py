"""Which query answers for which segment: Hungarian matching on sampled points (Mask2Former, Cheng et al., CVPR 2022)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def match_cost(
    class_probabilities: Tensor,
    point_logits: Tensor,
    target_columns: Tensor,
    target_masks: Tensor,
    valid: Tensor,
    *,
    class_weight: float,
    mask_weight: float,
    dice_weight: float,
) -> Tensor:
    """What it would cost to let each query answer for each segment.

    Any leading dimensions (images, heads) may stand before the ones named here; padding costs something too.

    Args:
        class_probabilities: (N, C) softmax over classes (and void).
        point_logits: (N, P) mask logits at the sampled points.
        target_columns: (S,) int64, the class column of each segment.
        target_masks: (S, P) float 0 or 1.
        valid: (P,) float, 0 where the label is to be ignored.

    Returns:
        (N, S) float32.
    """
    logits, targets, counted = point_logits.float(), target_masks.float(), valid[..., None, :]
    count = valid.sum(-1)[..., None, None].clamp_min(1)
    positive, negative = F.softplus(-logits) * counted, F.softplus(logits) * counted
    cross_entropy = (positive @ targets.mT + negative @ (1 - targets).mT) / count
    scores = logits.sigmoid() * counted
    overlap = scores @ targets.mT
    dice = 1 - (2 * overlap + 1) / (scores.sum(-1)[..., :, None] + (targets * counted).sum(-1)[..., None, :] + 1)
    columns = target_columns[..., None, :].expand(*class_probabilities.shape[:-1], target_columns.shape[-1])
    of_class = -class_probabilities.gather(-1, columns)
    return class_weight * of_class + mask_weight * cross_entropy + dice_weight * dice


def assign(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The cheapest one-to-one assignment.

    Args:
        cost: (N, S); where S > N only the N cheapest segments get a query.

    Returns:
        query indices and segment indices, int64, of equal length.
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(cost.detach().nan_to_num(1e6, 1e6, -1e6).cpu().numpy())
    return torch.as_tensor(rows), torch.as_tensor(columns)
