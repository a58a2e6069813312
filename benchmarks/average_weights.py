"""The mean of the decoders of several runs that started from the same weights, as a model folder or into one.

    python benchmarks/average_weights.py runs/a/model runs/b/model --out runs/mean/model

Such runs end in one valley, and the middle of it is often better than its edges (Wortsman et al., "Model soups", ICML 2022).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from vl4ad_model import registry
from vl4ad_model.network.checkpoint import write_safetensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, help="folders with a config.json and a decoder.safetensors")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    decoders = [load_file(folder / "decoder.safetensors") for folder in arguments.models]
    if any(decoder.keys() != decoders[0].keys() for decoder in decoders):
        parser.error("these models are not built alike")
    mean = {key: torch.stack([decoder[key].float() for decoder in decoders]).mean(dim=0) for key in decoders[0]}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "clip.safetensors"):
        source, target = arguments.models[-1] / name, arguments.out / name
        if source.resolve() != target.resolve():
            shutil.copyfile(source, target)
    write_safetensors(mean, arguments.out / "decoder.safetensors", half=True)
    if (arguments.out / registry.CHECKSUMS).is_file():
        registry.write_checksums(arguments.out)
    print(f"{arguments.out} holds the mean of {len(decoders)} decoders")


if __name__ == "__main__":
    main()
