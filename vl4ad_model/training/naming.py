"""Fits the mask decoder's own out-of-vocabulary branch: from the mask features pooled in a mask to what the thing is called.

A decoder that has learned the names of some hundred things for a long time tells those apart well, and says one of them for
anything new. A linear map of the same mask features, fitted for a short while under dropout, knows the trained things less well and
new ones better. That is what FC-CLIP's ensemble wants for words that training did not use; CLIP's own features at stride 32 are too
coarse for the small things on a road (docs/embedded_model.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl4ad_model.errors import TrainingError
from vl4ad_model.network.fcclip import FCCLIP
from vl4ad_model.network.mask_decoder import pool_over_masks
from vl4ad_model.training.features import Pyramid
from vl4ad_model.training.losses import IGNORED, name_loss
from vl4ad_model.training.words import Words

LEAST_OVERLAP = 0.3  # IoU of a query's mask with the thing that it answers for
# Chosen by forced choices of 8 among a quarter of the things, left out of the fit (three such quarters).
STEPS, BATCH, RATE = 1000, 512, 3e-3
DROPOUT, WEIGHT_DECAY = 0.1, 1.0
SCALE = 12.0  # of the cosines while fitting
# Words of the training are judged by the class embedding alone, others mostly by the linear map.
ENSEMBLE: dict[str, Any] = {"classifier": "ensemble", "alpha": 0.0, "beta": 0.8}
RELATED = 0.5  # cosine from which such a word is read as the nearest trained one, too
FEWEST = 200  # answers that a fit needs


@dataclass(frozen=True)
class Answers:
    """Queries that answered for a thing.

    Attributes:
        pooled: (n, mask channels) float, mean of the mask features in the query's mask.
        things: (n,) int64, owners in `Words.owners`; >= 0.
        emphasis: (n,) float, weight of each.
    """

    pooled: Tensor
    things: Tensor
    emphasis: Tensor

    @classmethod
    def joined(cls, parts: Iterable[Answers]) -> Answers:
        """All of several batches."""
        columns = zip(*((p.pooled, p.things, p.emphasis) for p in parts), strict=True)
        return cls(*map(torch.cat, columns))


@torch.no_grad()
def answers_of(network: FCCLIP, maps: Pyramid, labels: Tensor, things: Tensor, emphasis: Tensor, *, anchored: int) -> Answers:
    """The answers in a batch.

    Args:
        maps: CLIP's pyramid of the images.
        labels: (B, H, W) int64 in 0..255. things, emphasis: (B, 256), of each label, as in `losses.Targets`.
        anchored: the first so many queries stand for the known class of their index.
    """
    decoder = network.mask_decoder
    features = network.pixel_decoder(tuple(each.float() for each in maps))  # training in half precision has them in half
    (last,) = decoder(features)
    pooled = pool_over_masks(features.mask_features, last.mask_logits)
    inside = (last.mask_logits > 0).flatten(2).float()
    stride = labels.shape[-1] // last.mask_logits.shape[-1]
    small = labels[:, stride // 2 :: stride, stride // 2 :: stride].flatten(1)
    chosen: list[tuple[int, int, int]] = []
    for place, segments in enumerate(small):
        for segment in segments.unique().tolist():
            if segment == IGNORED or things[place, segment] < 0:
                continue
            if segment < anchored:
                query = segment
            else:
                of_segment = (segments == segment).float()
                both = inside[place, anchored:] @ of_segment
                either = inside[place, anchored:].sum(-1) + of_segment.sum() - both
                best = int((both / either).argmax())
                if both[best] < LEAST_OVERLAP * either[best]:
                    continue
                query = anchored + best
            if bool(inside[place, query].any()):
                chosen.append((place, query, segment))
    image, query, segment = torch.tensor(chosen, dtype=torch.int64).view(-1, 3).unbind(dim=1)
    return Answers(pooled.float().cpu()[image, query], things.cpu()[image, segment], emphasis.cpu()[image, segment])


def fit(answers: Answers, words: Words, *, seed: int = 0, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    """The map from mask features to text space: weight (D, mask channels) and bias (D,).

    Raises:
        TrainingError: too few answers.
    """
    if len(answers.things) < FEWEST:
        raise TrainingError(
            f"only {len(answers.things)} things with a name lie under a mask, and a fit needs {FEWEST}: "
            "use more crops, or train first"
        )
    mean, deviation = answers.pooled.mean(dim=0), answers.pooled.std(dim=0) + 1e-3
    inputs = (answers.pooled - mean) / deviation
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        linear = nn.Linear(inputs.shape[1], words.rows.shape[1])
        optimizer = torch.optim.AdamW(linear.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
        scale = torch.tensor(math.log(SCALE))
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            drawn = torch.randint(len(inputs), (BATCH,))
            embeddings = linear(F.dropout(inputs[drawn], DROPOUT))
            loss = name_loss(embeddings, answers.things[drawn], answers.emphasis[drawn], words, scale)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        weight = linear.weight / deviation
        return weight, linear.bias - weight @ mean
