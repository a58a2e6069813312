"""Concepts to unit text embeddings: fourteen templates, averaged, cached in memory and on disk."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vl4ad_model.cache_folder import cache_root
from vl4ad_model.errors import VocabularyError

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

# FC-CLIP's set (a subset of ViLD's); the mean over them is what a concept means.
PROMPT_TEMPLATES = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    "a photo of a small {}.",
    "a photo of a medium {}.",
    "a photo of a large {}.",
    "This is a photo of a small {}.",
    "This is a photo of a medium {}.",
    "This is a photo of a large {}.",
    "There is a small {} in the scene.",
    "There is a medium {} in the scene.",
    "There is a large {} in the scene.",
)
_MAGIC = b"VL4ADTXT1"


def average_templates(embeddings: np.ndarray) -> np.ndarray:
    """One unit row per concept: every prompt normalised, mean over templates, normalised again (FC-CLIP).

    Args:
        embeddings: (L, T, D) text embeddings of L concepts in T templates.

    Returns:
        (L, D) float32, unit rows.
    """
    unit = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
    mean = unit.mean(axis=1)
    return (mean / np.linalg.norm(mean, axis=-1, keepdims=True)).astype(np.float32)


class TextEncoder:
    """Concepts in, unit rows out, each concept encoded once for ever.

    Args:
        encode: token ids (L, context) to embeddings (L, D).
        tokenize: list of texts to token ids (L, context).
        weights_key: identifies the text tower's weights; cache entries of other weights are never used.
        end_token: id that ends every text, to notice texts that do not fit the context.
        cache_folder: None = no cache on disk.
        batch_size: prompts per call of `encode`.
        progress: told how many concepts of how many are encoded, before the first and after every batch.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        tokenize: Callable[[list[str]], Tensor],
        *,
        weights_key: str,
        end_token: int | None = None,
        cache_folder: Path | None = None,
        batch_size: int = 112,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._encode, self._tokenize = encode, tokenize
        self._end_token = end_token
        self._batch_size, self._progress = batch_size, progress
        self._memory: dict[str, np.ndarray] = {}
        digest = hashlib.sha256(weights_key.encode())
        digest.update("\0".join(PROMPT_TEMPLATES).encode())
        self._key = digest.hexdigest()
        self._folder = cache_folder / self._key[:16] if cache_folder else None
        self.encoded_concepts = 0
        """How many concepts went through the text tower so far (not counting cached ones)."""

    def check(self, concepts: Sequence[str]) -> None:
        """Refuse concepts that the text tower would cut off.

        Raises:
            VocabularyError: a concept is too long for the text encoder.
        """
        if self._end_token is None:
            return
        longest = max(PROMPT_TEMPLATES, key=len)
        for concept in concepts:
            if concept in self._memory:
                continue
            tokens = self._tokenize([longest.format(concept)])
            # A text that does not fit has its last token replaced by the end token.
            if int(tokens[0, -1]) == self._end_token:
                raise VocabularyError(
                    f"'{concept[:40]}{'...' if len(concept) > 40 else ''}' is too long for the text encoder "
                    f"({tokens.shape[1]} tokens with its template): use fewer words"
                )

    def encode_concepts(self, concepts: Sequence[str]) -> np.ndarray:
        """Embed concepts; only those never seen before cost anything.

        Returns:
            (L, D) float32, unit rows, in the order given.
        """
        self.check(concepts)
        missing = []
        for concept in dict.fromkeys(concepts):
            if concept not in self._memory:
                row = self._read(concept)
                if row is None:
                    missing.append(concept)
                else:
                    self._memory[concept] = row
        if missing:
            for concept, row in zip(missing, self._compute(missing), strict=True):
                self._memory[concept] = row
                self._write(concept, row)
        return np.stack([self._memory[concept] for concept in concepts])

    def _compute(self, concepts: list[str]) -> np.ndarray:
        import torch

        tokens = self._tokenize([template.format(concept) for concept in concepts for template in PROMPT_TEMPLATES])
        # Texts of one length together: the longest of a batch decides what the batch costs.
        lengths = (tokens != 0).sum(dim=1)
        order = lengths.argsort(stable=True)
        parts = []
        self._progress(0, len(concepts))
        with torch.inference_mode():
            for some in order.split(self._batch_size):
                parts.append(self._encode(tokens[some]).float().cpu().numpy())
                self._progress(sum(map(len, parts)) // len(PROMPT_TEMPLATES), len(concepts))
        self.encoded_concepts += len(concepts)
        embeddings = np.concatenate(parts)[order.argsort().numpy()]
        return average_templates(embeddings.reshape(len(concepts), len(PROMPT_TEMPLATES), -1))

    # A file is: magic, 32 bytes SHA-256 of what follows, float32 row. Its name is the hash of the concept, its folder the hash
    # of weights and templates, so a file that does not check out is somebody else's or broken: it is ignored and rewritten.

    def _path(self, concept: str) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / (hashlib.sha256(concept.encode()).hexdigest()[:32] + ".bin")

    def _read(self, concept: str) -> np.ndarray | None:
        path = self._path(concept)
        if path is None:
            return None
        try:
            content = path.read_bytes()
        except OSError:
            return None
        head = len(_MAGIC) + 32
        payload = content[head:]
        if content[: len(_MAGIC)] != _MAGIC or len(payload) % 4 or not payload:
            return None
        if hashlib.sha256(self._key.encode() + concept.encode() + payload).digest() != content[len(_MAGIC) : head]:
            return None
        row = np.frombuffer(payload, np.float32).copy()
        return row if np.isfinite(row).all() and abs(float(np.linalg.norm(row)) - 1) < 1e-3 else None

    def _write(self, concept: str, row: np.ndarray) -> None:
        path = self._path(concept)
        if path is None:
            return
        payload = np.ascontiguousarray(row, np.float32).tobytes()
        check = hashlib.sha256(self._key.encode() + concept.encode() + payload).digest()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(_MAGIC + check + payload)
                os.replace(name, path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            log.warning("text embeddings are not cached on disk: %s", error)
            self._folder = None


def default_cache_folder() -> Path:
    """$VL4AD_CACHE/text, or ~/.cache/vl4ad/text."""
    return cache_root() / "text"
