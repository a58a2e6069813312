"""A text tower of 8 million numbers that takes any prompt: open_clip's text transformer, taught by a sentence encoder.

The teacher's embedding of "a photo of a X", with the mean over the corpus removed and projected to the directions in which
names differ most, is what X means; the student must answer with it to every template of `prompts.py` and to the bare name.
Without the mean every two names have a cosine near 0.5 in the teacher; without it different things are near 0.

Most of the work is done before the first step: the embedding of each of CLIP's 49,408 byte-pair tokens starts as what the
teacher says of the token's own string, and the first attention as the mean over a text's tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl4ad_model.prompts import PROMPT_TEMPLATES, average_templates
from vl4ad_model.scenes.hazards import HAZARD_TYPES
from vl4ad_model.training import text_corpus
from vl4ad_model.training.teacher import SentenceEncoder
from vl4ad_model.vocabulary import Vocabulary

TEACHER_TEMPLATE = "a photo of a {}."
_BARE = "{}"
_SYNONYM_SHARE = 0.5  # how much of a name's meaning comes from its synonyms in WordNet
_FLATTENING = 0.25  # directions of variance v are scaled by v ** (-_FLATTENING / 2): names spread more evenly
_DRAWS = {"core": 10, "imagenet": 4, "emoji": 3}  # how often a name is drawn, others once


class TextSpace(NamedTuple):
    """The teacher's space made ours: mean (384,), basis (384, D) with orthogonal columns."""

    mean: np.ndarray
    basis: np.ndarray

    def project(self, teacher_rows: np.ndarray) -> np.ndarray:
        """Teacher's embeddings (L, 384) to unit rows (L, D), float32."""
        rows = (teacher_rows.astype(np.float32) - self.mean) @ self.basis
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def text_space(teacher_rows: np.ndarray, dimension: int) -> TextSpace:
    """Mean and first principal directions of a corpus' embeddings (L, 384), a little flattened."""
    rows = teacher_rows.astype(np.float32)
    mean = rows.mean(axis=0)
    centred = rows - mean
    variances, directions = np.linalg.eigh(centred.T @ centred / len(rows))
    variances, basis = variances[::-1][:dimension], directions[:, ::-1][:, :dimension]
    basis = basis * np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(dimension)])  # eigenvectors have no sign of their own
    return TextSpace(mean, (basis * (variances / variances.mean()) ** (-_FLATTENING / 2)).astype(np.float32))


def blend_synonyms(
    names: Sequence[str], rows: np.ndarray, concepts: Iterable[Sequence[str]], *, ignore: Collection[str]
) -> np.ndarray:
    """Move every name towards the mean of its synonyms, so that what a dictionary calls the same lies together.

    Args:
        names: L different names.
        rows: (L, D) unit rows.
        concepts: lists of synonyms.
        ignore: names that move no other (those that measure).

    Returns:
        (L, D) unit rows. "icebox" comes nearer to "refrigerator"; 4 more of 106 hazard synonyms find their name.
    """
    index = {name: position for position, name in enumerate(names)}
    partners: dict[int, set[int]] = {}
    for concept in concepts:
        here = [name for name in concept if name in index]
        for name in here:
            partners.setdefault(index[name], set()).update(index[o] for o in here if o != name and o not in ignore)
    blended = rows.copy()
    for position, others in partners.items():
        if others:
            row = rows[position] + _SYNONYM_SHARE * rows[sorted(others)].mean(axis=0)
            blended[position] = row / np.linalg.norm(row)
    return blended


class Lesson(NamedTuple):
    """What the student learns and is measured with.

    Attributes:
        names, targets, weights: what is taught: L names, (L, D) unit rows, (L,) how often each is drawn.
        held_out, held_out_targets: words that are never taught.
        token_targets: (49408, D) what each byte-pair token means by itself; zero where nothing.
        hazard_targets: hazard word -> (D,), the teacher's own answer, to compare the student with.
        tokenizer: open_clip's.
    """

    names: tuple[str, ...]
    targets: np.ndarray
    weights: np.ndarray
    held_out: tuple[str, ...]
    held_out_targets: np.ndarray
    token_targets: np.ndarray
    hazard_targets: dict[str, np.ndarray]
    tokenizer: Any

    def meaning(self, words: Sequence[str]) -> np.ndarray:
        """(n, D) targets of taught words."""
        index = {name: position for position, name in enumerate(self.names)}
        return self.targets[[index[word] for word in words]]


def prepare(
    teacher: SentenceEncoder,
    wordnet: Path,
    clip_config: dict[str, Any],
    *,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Lesson:
    """Collect the names, ask the teacher about them, and make its answers targets.

    Args:
        wordnet: WordNet's `dict` folder.
        clip_config: open_clip model config.
        on_progress: called with (asked, total).
    """
    from vl4ad_model.network.clip import tokenizer as make_tokenizer

    tokenizer, _ = make_tokenizer("vl4ad-tiny", clip_config)
    concepts = [concept for known in Vocabulary.cityscapes().classes for concept in known.alternative_concepts]
    corpus = text_corpus.build(wordnet, concepts, text_corpus.whole_words(tokenizer), seed=seed)
    unheard = [word for kind in HAZARD_TYPES for word in kind.unheard]
    names = list(dict.fromkeys([*corpus.names, *corpus.held_out, *unheard]))
    strings = token_strings(tokenizer)
    others = sorted({string for string in strings if string} - set(names))
    asked = [*names, *others]
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress(done, len(asked))

    answers = teacher.encode([TEACHER_TEMPLATE.format(name) for name in asked], bfloat16=True, progress=advance)
    index = {name: position for position, name in enumerate(asked)}
    taught = [index[name] for name in corpus.names]
    space = text_space(answers[taught], int(clip_config["embed_dim"]))
    plain = space.project(answers)
    synonyms = text_corpus.wordnet_nouns(wordnet)
    blended = blend_synonyms(names, plain[: len(names)], synonyms, ignore={*corpus.held_out, *unheard})
    tokens = np.stack([plain[index[string]] if string else np.zeros_like(plain[0]) for string in strings])
    draws = dict.fromkeys(text_corpus.emoji_names(), _DRAWS["emoji"])
    draws |= dict.fromkeys((n.lower() for same in text_corpus.imagenet_names() for n in same), _DRAWS["imagenet"])
    draws |= dict.fromkeys([*text_corpus.hazard_words(), *concepts], _DRAWS["core"])
    return Lesson(
        corpus.names,
        blended[taught],
        np.array([draws.get(name, 1) for name in corpus.names], float),
        corpus.held_out,
        blended[[index[name] for name in corpus.held_out]],
        tokens,
        {word: blended[index[word]] for word in text_corpus.hazard_words(unheard=True)},
        tokenizer,
    )


@dataclass(frozen=True)
class Schedule:
    """How long and how fast the student learns.

    Attributes:
        steps: optimiser steps.
        batch_size: prompts per step.
        learning_rate: of the transformer; the token embedding's is the same.
        seed: of the order of prompts.
    """

    steps: int = 3000
    batch_size: int = 512
    learning_rate: float = 1.5e-3
    seed: int = 3
    bfloat16: bool = True


def token_strings(tokenizer: Any) -> list[str]:
    """The text of each of the tokenizer's tokens, in the order of their ids; special tokens are empty."""
    return [
        "" if token in ("<start_of_text>", "<end_of_text>") else tokenizer.decode([index]).replace("\ufffd", "").strip()
        for index, token in sorted(tokenizer.decoder.items())
    ]


def initialise(model: nn.Module, token_targets: np.ndarray, *, seed: int) -> None:
    """Token embeddings from the teacher, the first attention a mean over tokens, the rest small.

    Args:
        model: open_clip `CLIP` whose text width equals its embedding dimension D.
        token_targets: (49408, D) unit rows, zero where a token means nothing by itself.
        seed: of the random part.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: Tensor, std: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * std)

    with torch.no_grad():
        width = model.token_embedding.weight.shape[1]
        noise(model.token_embedding.weight, 0.02)
        model.token_embedding.weight += torch.from_numpy(token_targets)
        noise(model.positional_embedding, 0.01)
        for block in model.transformer.resblocks:
            noise(block.attn.in_proj_weight, 0.5 * width**-0.5)
            block.attn.in_proj_weight[2 * width :] += torch.eye(width)
            block.attn.in_proj_bias.zero_()
            block.attn.out_proj.weight.copy_(torch.eye(width) * 0.5)
            block.attn.out_proj.bias.zero_()
            noise(block.mlp.c_fc.weight, width**-0.5)
            noise(block.mlp.c_proj.weight, 0.1 * width**-0.5)
            block.mlp.c_fc.bias.zero_()
            block.mlp.c_proj.bias.zero_()
        model.text_projection.copy_(torch.eye(width) / width**0.5)
        model.logit_scale.fill_(float(np.log(100.0)))  # T = 0.01, as trained CLIP models have


def encode_cut(model: nn.Module, tokens: Tensor) -> Tensor:
    """`model.encode_text` on tokens (L, n) cut to the longest text: the same values at a third of the cost.

    Padding is left out, and the last block computes only the token that ends the text, the one that is read.
    """
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    *blocks, last = model.transformer.resblocks
    for block in blocks:
        x = block(x, attn_mask=model.attn_mask[:length, :length])
    ends = tokens.argmax(dim=1)  # the end token has the largest id
    own = x[torch.arange(len(tokens)), ends][:, None]
    keys = last.ln_1(x)
    after_end = torch.arange(length) > ends[:, None]
    own = own + last.attn(last.ln_1(own), keys, keys, key_padding_mask=after_end, need_weights=False)[0]
    own = own + last.mlp(last.ln_2(own))
    return model.ln_final(own[:, 0]) @ model.text_projection


class PromptTokens:
    """Token ids of names in templates, put together from the parts' ids (a name's tokens do not depend on its template)."""

    def __init__(self, tokenizer: Any, names: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self.names = [tokenizer.encode(name) for name in names]
        self.frames = [tuple(tokenizer.encode(part) for part in template.split("{}")) for template in (*PROMPT_TEMPLATES, _BARE)]

    def batch(self, rows: np.ndarray, templates: np.ndarray) -> Tensor:
        """(L, longest) ids, padded with zeros."""
        start, end = self._tokenizer.sot_token_id, self._tokenizer.eot_token_id
        context = self._tokenizer.context_length
        lines = []
        for row, template in zip(rows, templates, strict=True):
            before, after = self.frames[template]
            line = [start, *before, *self.names[row], *after][: context - 1]
            lines.append([*line, end])
        longest = max(map(len, lines))
        return torch.tensor([line + [0] * (longest - len(line)) for line in lines])


def student(lesson: Lesson, clip_config: dict[str, Any], *, seed: int) -> nn.Module:
    """An open_clip model whose text tower is ready to be taught."""
    from vl4ad_model.network.clip import build_open_clip

    model = build_open_clip("vl4ad-tiny", clip_config)
    initialise(model, lesson.token_targets, seed=seed)
    return model


def train(model: nn.Module, lesson: Lesson, schedule: Schedule, *, on_step: Callable[[int, float], None] | None = None) -> None:
    """Teach the text tower: cosine distance to each name's target, under a random template.

    Args:
        model: see `student`.
        on_step: called with the step and its loss.
    """
    rng = np.random.default_rng(schedule.seed)
    prompts = PromptTokens(lesson.tokenizer, lesson.names)
    lengths = np.array([len(tokens) for tokens in prompts.names])
    frames = np.array([len(before) + len(after) for before, after in prompts.frames])
    goal = torch.from_numpy(np.ascontiguousarray(lesson.targets, np.float32))
    model.token_embedding.sparse = True
    body = [p for name, p in model.named_parameters() if _is_text(name) and name != "token_embedding.weight"]
    optimisers = (
        torch.optim.AdamW(body, lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.01),
        torch.optim.SparseAdam([model.token_embedding.weight], lr=schedule.learning_rate, betas=(0.9, 0.99)),
    )
    for parameter in (*body, model.token_embedding.weight):
        parameter.requires_grad_(True)
    chance = lesson.weights / lesson.weights.sum()
    pool = 16  # batches drawn together and sorted by length, so that little is padding
    queue: list[tuple[np.ndarray, np.ndarray]] = []
    for step in range(schedule.steps):
        if not queue:
            rows = rng.choice(len(lesson.names), size=pool * schedule.batch_size, p=chance)
            templates = rng.integers(0, len(prompts.frames), size=len(rows))
            order = np.argsort(lengths[rows] + frames[templates], kind="stable").reshape(pool, -1)
            queue = [(rows[part], templates[part]) for part in order[rng.permutation(pool)]]
        rows, templates = queue.pop()
        rate = schedule.learning_rate * min(1.0, (step + 1) / 50) * _cosine(step / schedule.steps)
        for optimiser in optimisers:
            optimiser.param_groups[0]["lr"] = rate
            optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=schedule.bfloat16):
            embeddings = F.normalize(encode_cut(model, prompts.batch(rows, templates)).float(), dim=-1)
        loss = (1 - (embeddings * goal[rows]).sum(-1)).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(body, 1.0)
        for optimiser in optimisers:
            optimiser.step()
        if on_step is not None:
            on_step(step, loss.item())
    model.token_embedding.sparse = False
    model.requires_grad_(False)


def _cosine(done: float) -> float:
    return 0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * done)))


def _is_text(name: str) -> bool:
    return not name.startswith("visual.") and name not in ("logit_scale", "logit_bias")


def embed(model: nn.Module, tokenizer: Any, words: Sequence[str]) -> np.ndarray:
    """(n, D) unit rows of words, averaged over the templates as at run time."""
    parts = []
    with torch.inference_mode():
        for start in range(0, len(words), 32):
            some = words[start : start + 32]
            tokens = tokenizer([template.format(word) for word in some for template in PROMPT_TEMPLATES])
            rows = encode_cut(model, tokens[:, : int(tokens.argmax(dim=1).max()) + 1])
            parts.append(average_templates(rows.numpy().reshape(len(some), len(PROMPT_TEMPLATES), -1)))
    return np.concatenate(parts)


def embed_quickly(
    model: nn.Module, tokenizer: Any, words: Sequence[str], *, on_progress: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """(n, D) unit rows of very many words: like `embed`, by three of the templates."""
    prompts = PromptTokens(tokenizer, words)
    order = np.argsort([len(tokens) for tokens in prompts.names], kind="stable")
    rows = np.zeros((len(words), int(model.text_projection.shape[1])), np.float32)
    with torch.inference_mode():
        for start in range(0, len(words), 1024):
            some = order[start : start + 1024]
            templates = (np.full(len(some), template) for template in (0, len(PROMPT_TEMPLATES) // 2, len(PROMPT_TEMPLATES)))
            parts = [encode_cut(model, prompts.batch(some, each)).numpy() for each in templates]
            rows[some] = average_templates(np.stack(parts, axis=1))
            if on_progress is not None:
                on_progress(start + len(some), len(words))
    return rows


class Recognition(NamedTuple):
    """How many hazard words lie nearest to the right one of the hazard names: (right, of) for synonyms and for unheard ones."""

    synonyms: tuple[int, int]
    unheard: tuple[int, int]


def recognition(rows_of: Callable[[Sequence[str]], np.ndarray]) -> Recognition:
    """Nearest-name accuracy of an embedding of words, over all hazard types."""
    names = rows_of([kind.name for kind in HAZARD_TYPES])

    def count(words: list[tuple[str, int]]) -> tuple[int, int]:
        nearest = (rows_of([word for word, _ in words]) @ names.T).argmax(axis=1)
        return int((nearest == [right for _, right in words]).sum()), len(words)

    return Recognition(
        count([(word, i) for i, kind in enumerate(HAZARD_TYPES) for word in kind.synonyms]),
        count([(word, i) for i, kind in enumerate(HAZARD_TYPES) for word in kind.unheard]),
    )


def report(model: nn.Module, lesson: Lesson) -> list[str]:
    """Lines that say how well the student learned."""

    def rows(words: Sequence[str]) -> np.ndarray:
        return embed(model, lesson.tokenizer, words)

    ours = recognition(rows)
    theirs = recognition(lambda words: np.stack([lesson.hazard_targets[word] for word in words]))
    held_out = (rows(lesson.held_out) * lesson.held_out_targets).sum(axis=1)
    classes = rows([known.name for known in Vocabulary.cityscapes().classes])
    cosines = (classes @ classes.T)[np.triu_indices(len(classes), 1)]
    return [
        f"hazard synonyms nearest to their name: {ours.synonyms[0]} of {ours.synonyms[1]} (targets {theirs.synonyms[0]})",
        f"the same for words never taught as hazards: {ours.unheard[0]} of {ours.unheard[1]} (targets {theirs.unheard[0]})",
        f"cosine to the target on {len(held_out)} words never taught: mean {held_out.mean():.3f}",
        f"cosines between the {len(classes)} known classes: mean {cosines.mean():.3f}, largest {cosines.max():.3f}",
    ]
