"""The losses of mask proposals and their names, on sampled points: cross-entropy, dice, class, the finished class map, its IoU.

Mask and class losses are Mask2Former's. The map loss is on p_k(h, w) = sum_i s_i c_ik itself, the quantity that labels and
anomaly score are read from: 1 for the class of a pixel, 0 for all others, and 0 for ALL known classes on things that no word of
the step's vocabulary names. That last part is what makes 1 - max_k p_k an anomaly score. The IoU loss is Lovász-softmax (Berman
et al., CVPR 2018) of that map: a bicycle's hundred pixels count in it as much as a road's hundred thousand, as they do in mIoU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vl4ad_model.network.mask_decoder import QueryMasks
from vl4ad_model.network_words import SAME_MEANING
from vl4ad_model.training.matching import assign, match_cost
from vl4ad_model.training.words import Words

IGNORED = 255
ABSENT, NOTHING = -2, -1
PARTS = 64  # of an image, counted apart: on a GPU additions to one place wait for each other
CELL = 4  # pixels, side of the cells by which `sample_points` finds what lies beside a segment


@dataclass(frozen=True)
class LossWeights:
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    map_weight: float = 2.0
    no_object_weight: float = 0.1
    name_weight: float = 0.0
    iou_weight: float = 0.0


@dataclass(frozen=True)
class Targets:
    """Labels of a batch.

    Attributes:
        labels: (B, H, W) int64: ids of known classes, ids of unnamed or hazard segments, 255 = ignored.
        columns: per image, segment id -> class column of the step's vocabulary; void for what it does not name.
        things: (B, 256) int64, segment id -> owner in `Words.owners`; -1 = nothing with a name.
        emphasis: (B, 256) float, segment id -> its weight in the name loss.
    """

    labels: Tensor
    columns: tuple[dict[int, int], ...]
    things: Tensor
    emphasis: Tensor


def sizes_of_segments(flat: Tensor) -> Tensor:
    """(B, P) float: for each of the labels (B, P) int64 in 0..255, how many of its image's are the same."""
    ones = torch.ones((), device=flat.device)
    batch, pixels = flat.shape
    parts = PARTS if flat.is_cuda and pixels % PARTS == 0 else 1
    sizes = torch.zeros(batch, parts, 256, device=flat.device)
    sizes.scatter_add_(2, flat.view(batch, parts, -1), ones.expand(batch, parts, pixels // parts))
    return sizes.sum(dim=1).gather(1, flat)


def sample_points(labels: Tensor, count: int, *, beside: bool = False) -> Tensor:
    """Points of each image, half of them uniform, half with rare segments favoured (probability ~ segment size ^ -1/2).

    Args:
        labels: (B, H, W) int64 in 0..255.
        beside: what lies within one or two cells of 4 pixels from a rare segment is favoured like the segment itself: masks are
            asked for beside thin things as often as inside them, and do not grow fat.

    Returns:
        (B, count) int64 flat pixel indices.
    """
    flat = labels.flatten(1)
    batch, pixels = flat.shape
    uniform = torch.randint(pixels, (batch, count // 2), device=flat.device)
    weight = sizes_of_segments(flat).pow(-0.5) * (flat != IGNORED)
    if beside:
        cells = F.max_pool2d(weight.view(labels.shape)[:, None], CELL, ceil_mode=True)
        around = F.max_pool2d(cells, kernel_size=3, stride=1, padding=1)
        weight = F.interpolate(around, scale_factor=CELL)[..., : labels.shape[-2], : labels.shape[-1]].flatten(1)
    weight = weight * (flat != IGNORED) + 1e-8
    favoured = torch.multinomial(weight, count - count // 2, replacement=True)
    return torch.cat((uniform, favoured), dim=1)


def at_points(maps: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, N, h, w) maps, bilinearly upsampled to `size`, at flat pixel indices (B, P) of that size: (B, N, P)."""
    height, width = size
    x = ((points % width).float() + 0.5) * (2.0 / width) - 1
    y = ((points // width).float() + 0.5) * (2.0 / height) - 1
    grid = torch.stack((x, y), dim=-1)[:, None]
    # In float32: half precision would put points of wide images beside where they are.
    return F.grid_sample(maps.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)[:, :, 0]


def class_logits(embeddings: Tensor, words: Words, void: Tensor, logit_scale: Tensor) -> Tensor:
    """(B, N, D) embeddings to (B, N, C + 1): scaled cosine with the best concept of each class; void comes last."""
    unit = F.normalize(embeddings.float(), dim=-1)
    best = (unit @ words.rows.T)[..., words.index].amax(dim=-1)
    of_void = unit @ F.normalize(void.float(), dim=-1)
    return torch.cat((best, of_void[..., None]), dim=-1) * logit_scale.exp().clamp_max(100.0)


def name_loss(embeddings: Tensor, things: Tensor, weights: Tensor, words: Words, logit_scale: Tensor) -> Tensor:
    """Cross-entropy of the right name among ALL words of the training, whatever the step's vocabulary is.

    A step's vocabulary offers a few dozen names; telling thousands apart teaches far more about where in CLIP's space a thing lies.

    Args:
        embeddings: (n, D), not normalised. things: (n,) int64 owners; -1 = left out. weights: (n,) of the mean.
        logit_scale: logarithm; not trained by this loss.
    """
    chosen = things >= 0
    weights = torch.where(chosen, weights, 0.0)
    unit = F.normalize(embeddings.float(), dim=-1)
    own = words.owners[None] == things[:, None]
    # One of the thing's names at a time, drawn anew: a synonym is as right as the name. What is left out draws any word.
    draw = torch.rand(own.shape, device=own.device).masked_fill(~own, -1).argmax(dim=1)
    scale = logit_scale.detach().exp().clamp_max(100.0)
    # Names this alike are not told apart: whoever sees a "boulder" may say "rock".
    near = words.rows[draw] @ words.rows.T > SAME_MEANING
    logits = (unit @ words.rows.T) * scale
    logits = logits.masked_fill(own | near | (words.owners < 0)[None], float("-inf"))
    right = (unit * words.rows[draw]).sum(-1, keepdim=True) * scale
    every = torch.cat((right, logits), dim=-1)
    each = F.cross_entropy(every, torch.zeros_like(draw), reduction="none")
    return (each * weights).sum() / weights.sum().clamp_min(1e-6)


def proposal_losses(
    heads: list[QueryMasks],
    points: Tensor,
    targets: Targets,
    words: Words,
    void: Tensor,
    logit_scale: Tensor,
    *,
    weights: LossWeights,
    anchored: int = 0,
    known: int = 0,
    seen_points: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """All losses of a batch, summed over the heads (deep supervision).

    Args:
        heads: predictions of every head, masks (B, N, P) at the points; the last one also takes the map loss.
        points: (B, P) flat pixel indices of the labels, from `sample_points`; the first half are uniform.
        words: the step's vocabulary.
        void: (D,) the void embedding; logit_scale: logarithm.
        anchored: the first so many queries stand for the known class of their index; 0 = all are matched.
        known: the first so many classes are the known ones, whose IoU the IoU loss is about.
        seen_points: (B, P) flat pixel indices and (B, P, D) class embeddings of those pixels alone, for the name loss.

    Returns:
        "total" and its parts "mask", "dice", "class", "map", "name", "iou", scalars; parts are before their weight.
    """
    point_labels = targets.labels.flatten(1).gather(1, points)
    valid = (point_labels != IGNORED).float()
    # All heads at once, (heads, B, ...): one launch instead of one per head, and one wait for the matching.
    logits = torch.stack([head.mask_logits.float() for head in heads])
    embeddings = torch.stack([head.query_embeddings for head in heads])
    of_class = class_logits(embeddings, words, void, logit_scale)
    owner, column = _owners(logits, of_class, targets, point_labels, valid, words.void_column, weights, anchored)
    zero = logits.new_zeros(())
    sums = dict.fromkeys(("mask", "dice", "class", "map", "name", "iou"), zero)
    sums["mask"], sums["dice"] = _mask_losses(logits, owner, point_labels, valid)
    sums["class"] = _class_loss(of_class, owner, column, words.void_column, weights.no_object_weight, anchored)
    if weights.name_weight:
        for of_head, owned in zip(embeddings, owner, strict=True):
            of_queries = _name_loss(of_head[:, anchored:], owned[:, anchored:], targets, words, logit_scale)
            sums["name"] = sums["name"] + of_queries / len(heads)
    if weights.name_weight and seen_points is not None:
        where, embeddings = seen_points
        segments = targets.labels.flatten(1).gather(1, where)
        sums["name"] = sums["name"] + _name_loss(embeddings, segments, targets, words, logit_scale)
    point_columns = _point_columns(point_labels, targets, words.void_column)
    p = torch.einsum("bnc,bnp->bpc", of_class[-1].softmax(dim=-1)[..., :-1], logits[-1].sigmoid())
    sums["map"] = map_loss(p, point_columns, valid)
    if weights.iou_weight:
        uniform = slice(points.shape[1] // 2)  # IoU is of all pixels, not of those where rare segments are favoured
        inside = (valid > 0) & (point_columns < known)
        sums["iou"] = iou_loss(p[:, uniform], point_columns[:, uniform], inside[:, uniform], known)
    count = len(heads)
    total = (
        weights.mask_weight * sums["mask"] / count
        + weights.dice_weight * sums["dice"] / count
        + weights.class_weight * sums["class"] / count
        + weights.map_weight * sums["map"]
        + weights.name_weight * sums["name"]
        + weights.iou_weight * sums["iou"]
    )
    return {"total": total, **sums}


def map_loss(p: Tensor, point_columns: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy of p_k at points: 1 for the pixel's class, 0 for the others.

    Args:
        p: (B, P, C), sum_i s_i c_ik. point_columns: (B, P), C = no class of the vocabulary. valid: (B, P) float.
    """
    # Overlapping masks may push p above 1: no target is missed there, and others are pushed down with a bounded loss.
    target = F.one_hot(point_columns, p.shape[-1] + 1)[..., :-1].to(p.dtype)
    hit = -(p.clamp(1e-4, 1.0).log() * target).sum(-1)
    below = torch.where(p < 0.98, p, 0.98 + 0.01 * (p - 0.98).clamp(max=1.0))
    wrong = -((1 - below).log() * (1 - target)).sum(-1)
    return ((hit + wrong) * valid).sum() / valid.sum().clamp_min(1)


def iou_loss(p: Tensor, point_columns: Tensor, inside: Tensor, known: int) -> Tensor:
    """1 - IoU as a convex function of the class map, the mean over the known classes that are there (Lovász-softmax).

    With a map that is 0 or 1 everywhere it is 1 - IoU itself. It is of the whole batch at once: a class that one image shows at
    ten points has no IoU worth the name there.

    Args:
        p: (B, P, C); only shares of the classes' sum count. point_columns: (B, P) int64.
        inside: (B, P) bool, points of known classes. known: number of them; their columns come first.
    """
    share = (p / p.sum(-1, keepdim=True).clamp_min(1e-4))[..., :known].flatten(0, 1).T
    is_class = (point_columns.flatten()[None] == torch.arange(known, device=p.device)[:, None]) & inside.flatten()
    is_class = is_class.to(share.dtype)
    # A point outside is neither a hit nor one of the others: the slope there is 0, whatever its error.
    error, order = (is_class - share).abs().sort(dim=1, descending=True)
    hits = is_class.gather(1, order)
    others = inside.flatten().to(share.dtype).expand_as(hits).gather(1, order) - hits
    number = hits.sum(1, keepdim=True)
    jaccard = 1 - (number - hits.cumsum(1)) / (number + others.cumsum(1)).clamp_min(1)
    slope = torch.cat((jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]), dim=1)
    there = (number[:, 0] > 0).to(share.dtype)
    return ((error * slope.detach()).sum(1) * there).sum() / there.sum().clamp_min(1)


def _name_loss(embeddings: Tensor, segments: Tensor, targets: Targets, words: Words, logit_scale: Tensor) -> Tensor:
    """Of embeddings (B, n, D) that answer for segments (B, n) int64; negative = for none."""
    ids = segments.clamp_min(0)
    things = targets.things.gather(1, ids).where(segments >= 0, -1)
    return name_loss(embeddings.flatten(0, 1), things.flatten(), targets.emphasis.gather(1, ids).flatten(), words, logit_scale)


def _owners(
    logits: Tensor,
    of_class: Tensor,
    targets: Targets,
    point_labels: Tensor,
    valid: Tensor,
    void_column: int,
    weights: LossWeights,
    anchored: int,
) -> tuple[Tensor, Tensor]:
    """(L, B, N) segment id each query of each head answers for (NOTHING, or ABSENT for the query of a class that is not there), and
    its column."""
    layers, batch, queries, _ = logits.shape
    owner = np.full((layers, batch, queries), NOTHING, np.int64)
    column = np.full((layers, batch, queries), void_column, np.int64)
    if anchored:
        owner[..., :anchored] = ABSENT
    free: list[list[int]] = []
    for image, columns in enumerate(targets.columns):
        for segment, of_segment in columns.items():
            if segment < anchored:
                owner[:, image, segment], column[:, image, segment] = segment, of_segment
        free.append([segment for segment in columns if segment >= anchored])
    widest = max(map(len, free))
    if widest:
        # All images at once, padded with segments that no pixel has.
        padded = np.array([segments + [NOTHING] * (widest - len(segments)) for segments in free])
        asked = np.array(
            [[columns.get(i, 0) for i in segments] for columns, segments in zip(targets.columns, padded.tolist(), strict=True)]
        )
        ids = torch.from_numpy(padded).to(logits.device)
        with torch.no_grad():
            costs = match_cost(
                of_class[..., anchored:, :].softmax(-1),
                logits[..., anchored:, :],
                torch.from_numpy(asked).to(logits.device),
                point_labels[:, None] == ids[..., None],
                valid,
                class_weight=weights.class_weight,
                mask_weight=weights.mask_weight,
                dice_weight=weights.dice_weight,
            ).cpu()
        for layer in range(layers):
            for image, segments_of in enumerate(free):
                if not segments_of:
                    continue
                rows, segments = (part.numpy() for part in assign(costs[layer, image, :, : len(segments_of)]))
                owner[layer, image, anchored + rows] = padded[image, segments]
                column[layer, image, anchored + rows] = asked[image, segments]
    return torch.from_numpy(owner).to(logits.device), torch.from_numpy(column).to(logits.device)


def _mask_losses(logits: Tensor, owner: Tensor, point_labels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and dice, the mean over each head's queries with an owner, summed over the heads."""
    owned, absent = owner >= 0, owner == ABSENT
    target = (point_labels[:, None] == owner[..., None]).to(logits.dtype)
    count = valid.sum(-1)[:, None].clamp_min(1)
    cross_entropy = (F.binary_cross_entropy_with_logits(logits, target, reduction="none") * valid[:, None]).sum(-1) / count
    scores = logits.sigmoid() * valid[:, None]
    target = target * valid[:, None]
    dice = 1 - (2 * (scores * target).sum(-1) + 1) / (scores.sum(-1) + target.sum(-1) + 1)
    number = owned.sum((1, 2)).clamp_min(1)
    return ((cross_entropy * (owned | absent)).sum((1, 2)) / number).sum(), ((dice * owned).sum((1, 2)) / number).sum()


def _class_loss(of_class: Tensor, owner: Tensor, column: Tensor, void_column: int, no_object: float, anchored: int) -> Tensor:
    loss = F.cross_entropy(of_class.flatten(0, 2), column.flatten(), reduction="none").view(owner.shape)
    weight = torch.where(owner >= 0, 1.0, no_object).to(loss.dtype)
    # The query of a class that is not in view has nothing to be named; the map loss keeps its mask empty.
    weight = torch.where(owner == ABSENT, torch.zeros_like(weight), weight)
    return ((loss * weight).sum((1, 2)) / weight.sum((1, 2)).clamp_min(1e-6)).sum()


def _point_columns(point_labels: Tensor, targets: Targets, void_column: int) -> Tensor:
    table = np.full((len(targets.columns), 256), void_column, np.int64)
    for image, columns in enumerate(targets.columns):
        for segment, column in columns.items():
            table[image, segment] = column
    return torch.from_numpy(table).to(point_labels.device).gather(1, point_labels)
