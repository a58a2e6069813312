"""Weights from nothing but the keys' names: a stand-in that is the same on every machine, for tests and missing files."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import nn


def fill_deterministically(module: nn.Module) -> None:
    """Fill every tensor of a module from its key and shape: normal / sqrt(fan in), norms near one, variances positive."""
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                tensor.zero_()
                continue
            if key.endswith("logit_scale"):
                tensor.fill_(np.log(1 / 0.07))
                continue
            random = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
            values: np.ndarray = random.standard_normal(tuple(tensor.shape), dtype=np.float32)
            if tensor.dim() >= 2:
                values /= np.sqrt(np.prod(tensor.shape[1:]))
            elif key.endswith("running_var"):
                values = 1 + 0.1 * np.abs(values)
            elif key.endswith("weight"):
                values = 1 + 0.02 * values
            else:
                values *= 0.02
            tensor.copy_(torch.from_numpy(np.asarray(values)))
