"""The equations as they are written, with everything materialised: slow, obvious, any precision. The production path in
`scoring.py` is tested against this.

N queries, K known classes, Q hazards. Class k has alternative concepts L_k.
- s in [0,1]^(N x H x W): mask scores = sigmoid(mask logits, upsampled: bilinearly or along the image's edges). v_i: visual
  embedding of query i.
- cos(i, k) = max over l in L_k of cos(v_i, t_l).
- c_i = softmax over K + Q (+ void) of cos(i, .) / T.
- p_k(h, w) = sum_i s_i(h, w) c_ik, without void.  label(h, w) = argmax over K + Q.
- Rivals (`network_words.rivals`): for the label alone, c_ik of a hazard k counts as 0 where cos(v_i, t_r) - margin_kr > cos(i, k)
  for a rival r.
- anomaly(h, w) = 1 - max over k <= K of p_k(h, w).
- normalized anomaly(h, w) = (e + sum_i s_i(h, w) (1 - a_i)) / (e + sum_i s_i(h, w)), a_i = sum over k <= K of c_ik, e = 0.1.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def mask_scores(
    mask_logits: Tensor, padded_size: tuple[int, int], image_size: tuple[int, int], output_size: tuple[int, int]
) -> Tensor:
    """(N, h, w) logits to (N, H, W) scores: upsample to the padded input, crop to the image, resize to the output, sigmoid."""
    x = F.interpolate(mask_logits[None], size=padded_size, mode="bilinear", align_corners=False)
    x = x[..., : image_size[0], : image_size[1]]
    x = F.interpolate(x, size=output_size, mode="bilinear", align_corners=False)
    return x[0].sigmoid()


def guided_logits(mask_logits: Tensor, image: Tensor, image_size: tuple[int, int], tolerance: float) -> Tensor:
    """(N, h, w) logits to (N, H, W) float64, the size of the image, by joint bilateral upsampling (`network.upsampling`).

    Args:
        image: (3, H', W') RGB in grey levels, H' >= H and W' >= W.
        tolerance: in grey levels.
    """
    _, rows, columns = mask_logits.shape
    whole = F.pad(image.double()[None], (0, 4 * columns - image.shape[2], 0, 4 * rows - image.shape[1]), mode="replicate")[0]
    mean = whole.view(3, rows, 4, columns, 4).mean(dim=(2, 4)).numpy()
    pixels, masks = whole.numpy(), mask_logits.double().numpy()
    result = np.empty((len(masks), *image_size))
    for y, x in itertools.product(range(image_size[0]), range(image_size[1])):
        centre_y, centre_x = max((y + 0.5) / 4 - 0.5, 0), max((x + 0.5) / 4 - 0.5, 0)
        blended, total = np.zeros(len(masks)), 0.0
        for row, column in itertools.product((int(centre_y), int(centre_y) + 1), (int(centre_x), int(centre_x) + 1)):
            near = (1 - abs(centre_y - row)) * (1 - abs(centre_x - column))
            cell = min(row, rows - 1), min(column, columns - 1)
            weight = near / (tolerance**2 + ((pixels[:, y, x] - mean[:, cell[0], cell[1]]) ** 2).sum())
            blended, total = blended + weight * masks[:, cell[0], cell[1]], total + weight
        result[:, y, x] = blended / total
    return torch.from_numpy(result)


def class_probabilities(embeddings: Tensor, groups: Sequence[Tensor], void: Tensor | None, inverse_temperature: float) -> Tensor:
    """Softmax over classes of the best concept's cosine.

    Args:
        embeddings: (N, D) of the queries.
        groups: per class (L_k, D) unit text rows.
        void: (D,) unit row, or None.
        inverse_temperature: 1 / T.

    Returns:
        (N, C) or, with void, (N, C + 1), the void column last.
    """
    unit = F.normalize(embeddings, dim=-1)
    columns = [(unit @ rows.T).max(dim=-1).values for rows in groups]
    if void is not None:
        columns.append(unit @ void)
    return (torch.stack(columns, dim=-1) * inverse_temperature).softmax(dim=-1)


def ensemble_probabilities(p_in: Tensor, p_out: Tensor, weight: Tensor, p_void: Tensor | None) -> Tensor:
    """FC-CLIP's geometric ensemble of the two branches, both (N, C) without void: softmax(log(p_in^(1-w) p_out^w)) (1 - p_void)."""
    blended = ((1 - weight) * p_in.log() + weight * p_out.log()).softmax(dim=-1)
    return blended if p_void is None else blended * (1 - p_void)[:, None]


def label_map(scores: Tensor, probabilities: Tensor) -> Tensor:
    """(N, H, W) mask scores and (N, K + Q) class probabilities to (H, W) ids."""
    return torch.einsum("nk,nhw->khw", probabilities, scores).argmax(dim=0)


def anomaly_map(scores: Tensor, known_probabilities: Tensor) -> Tensor:
    """(N, H, W) mask scores and (N, K) probabilities of the known (merged) classes to the (H, W) anomaly score."""
    return 1 - torch.einsum("nk,nhw->khw", known_probabilities, scores).max(dim=0).values


def normalized_anomaly_map(scores: Tensor, known_probabilities: Tensor, unclaimed: float = 0.1) -> Tensor:
    """(N, H, W) mask scores and (N, K) probabilities of the known (merged) classes to the (H, W) normalized anomaly score."""
    known = torch.einsum("n,nhw->hw", known_probabilities.sum(dim=1), scores)
    return 1 - known / (scores.sum(dim=0) + unclaimed)
