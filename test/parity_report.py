"""Numerical parity with the public FC-CLIP: `python test/parity_report.py CASES.json [--json FILE]`.

CASES.json holds what bytedance/fc-clip computed, tensor by tensor, with deterministic weights on deterministic images; the kit
around it (fill.py and manifest_<variant>.json in the same folder) says how to make both. Every case is run through this
project's own loading, network and scoring. A case is called `HxW`, or `HxW_to_H2xW2` where the output has another size.

Prints JSON: per case and tensor the max, mean and 99th percentile of the error over the recorded samples, the tolerance for the
mean, and a verdict. Exit status 1 when anything is outside.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vl4ad_model import torchvision_schemas

torchvision_schemas.define()

import torch
from torch.nn import functional as F

from vl4ad_model.network import checkpoint
from vl4ad_model.network.fcclip import FCCLIP, FCCLIPConfig
from vl4ad_model.network.mask_decoder import pool_over_masks
from vl4ad_model.network.position import reference_points, sine_position_embedding
from vl4ad_model.network.uninitialized import Uninitialized
from vl4ad_model.scoring import Scorer, prepare_classifier
from vl4ad_model.vocabulary import Vocabulary, VocabularyClass

# Matrix products split over another number of threads round otherwise. With the recorded number the backbone, the pixel decoder
# and the mask decoder equal the reference in every bit on the same kind of CPU.
REFERENCE_THREADS = 2
CLIP_MODELS = {"r50": "RN50", "convnext_large": "convnext_large_d_320"}

# Tolerated mean error per variant. What the reference itself moves by when its float32 sums are reordered is 1e-6 up to
# mask_features and, where the random weights make `mask > 0` discontinuous (ConvNeXt-L), 7e-5 for masks, 1.5e-3 for the pooled
# logits and 1.1e-2 for the final map; a few times that is allowed.
TOLERANCES: dict[str, list[tuple[str, float]]] = {
    "r50": [
        (r"input\.|backbone\.", 5e-6),
        (r"pixel_decoder\.", 5e-6),
        (r".*attn_mask_blocked", 2e-3),
        (r"predictor\..*pred_masks|post\.pred_masks_full|post\.mask_for_pooling", 3e-5),
        (r"predictor\.", 2e-5),
        (r"final\.sem_seg", 1e-4),
        (r"final\.argmax", 1e-2),
        (r"post\.", 2e-5),
    ],
    "convnext_large": [
        (r"input\.|backbone\.", 5e-6),
        (r"pixel_decoder\.", 1e-5),
        (r".*attn_mask_blocked", 2e-3),
        (r"predictor\..*pred_masks|post\.pred_masks_full|post\.mask_for_pooling", 1e-3),
        (r"predictor\..*logits", 1e-2),
        (r"predictor\.", 1e-3),
        (r"final\.sem_seg", 2e-2),
        (r"final\.argmax", 1e-2),
        (r"post\.(out_vocab_logits|mask_cls_log|ensemble_log)", 2e-2),
        (r"post\.", 2e-3),
    ],
}


def load_kit(folder: Path):
    """The kit's fill rules as a module."""
    spec = importlib.util.spec_from_file_location("parity_fill", folder / "fill.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def released_state_dict(folder: Path, variant: str, *, clip: bool = True) -> dict[str, torch.Tensor]:
    """The kit's weights under the released key names, with or without CLIP."""
    fill = load_kit(folder).fill
    manifest = json.loads((folder / f"manifest_{variant}.json").read_text())
    return {
        e["key"]: torch.from_numpy(np.asarray(fill(e["key"], e["shape"], e["dtype"])))
        for e in manifest["entries"]
        if clip or not e["key"].startswith("backbone.")
    }


def build(folder: Path, variant: str) -> FCCLIP:
    """The network with the kit's weights, through the project's own strict loading."""
    with Uninitialized():
        network = FCCLIP(FCCLIPConfig(clip_model=CLIP_MODELS[variant])).eval()
    tensors = checkpoint.network_keys(released_state_dict(folder, variant))
    checkpoint.load_network_weights(network, tensors, source=variant)
    return network


def parse_name(name: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """'HxW' or 'HxW_to_H2xW2' to input and output size."""
    match = re.fullmatch(r"(\d+)x(\d+)(?:_to_(\d+)x(\d+))?", name)
    if not match:
        raise SystemExit(f"case '{name}' is not called HxW or HxW_to_H2xW2")
    h, w, h2, w2 = match.groups()
    return (int(h), int(w)), (int(h2 or h), int(w2 or w))


def record(network: FCCLIP, image: np.ndarray, output_size: tuple[int, int], kit, cases: dict) -> dict[str, torch.Tensor]:
    """Every recorded tensor of one image, from hooks on the network's own modules and from the production scoring."""
    out: dict[str, torch.Tensor] = {}
    calls: dict[str, list] = {}
    handles = []

    def keep(name: str, module, first: bool = False):
        def hook(_, inputs, result):
            calls.setdefault(name, []).append(result[0] if first else result)

        handles.append(module.register_forward_hook(hook))

    visual = network.clip.model.visual
    keep("backbone.stem", visual.act3 if network.clip.is_resnet else visual.trunk.stem)
    pixel, decoder = network.pixel_decoder, network.mask_decoder
    for i, projection in enumerate(pixel.input_proj):
        keep(f"pixel_decoder.input_proj.{i}", projection)
    for i, layer in enumerate(pixel.transformer.encoder.layers):
        keep(f"pixel_decoder.encoder.layer{i}", layer)
    keep("pixel_decoder.adapter_1", pixel.adapter_1)
    keep("pixel_decoder.layer_1", pixel.layer_1)
    for i in range(decoder.num_layers):
        keep(f"predictor.layer{i}.after_cross", decoder.transformer_cross_attention_layers[i])
        keep(f"predictor.layer{i}.after_self", decoder.transformer_self_attention_layers[i])
        keep(f"predictor.layer{i}.after_ffn", decoder.transformer_ffn_layers[i])
    for name in ("decoder_norm", "mask_embed", "class_embed"):
        keep(name, getattr(decoder, name))
    keep("mask_pool_proj", decoder._mask_pooling_proj)

    normalized = network.normalize(torch.from_numpy(image).permute(2, 0, 1)[None])
    features = network.clip(normalized)
    pixels = network.pixel_decoder(features.pyramid)
    heads = network.mask_decoder(pixels, every_head=True)
    for handle in handles:
        handle.remove()

    out["input.normalized_padded"] = normalized
    for i, level in enumerate(features.pyramid):
        out[f"backbone.res{i + 2}"] = level
    out["backbone.clip_vis_dense"] = features.dense
    sizes = [tuple(level.shape[-2:]) for level in pixels.levels]
    channels = network.config.channels
    position = [
        sine_position_embedding(h, w, channels).flatten(1).T + pixel.transformer.level_embed[i] for i, (h, w) in enumerate(sizes)
    ]
    out["pixel_decoder.encoder.pos"] = torch.cat(position)[None]
    out["pixel_decoder.encoder.reference_points"] = reference_points(sizes)[None, :, None].expand(1, -1, 3, 2)
    for name, values in calls.items():
        if name.startswith(("backbone.", "pixel_decoder.")):
            out[name] = values[0]
        elif name.startswith("predictor.layer"):
            out[name] = values[0].transpose(0, 1)  # the reference keeps queries first
    out["pixel_decoder.layer_1"] = out["pixel_decoder.layer_1"].relu()
    out["pixel_decoder.mask_features"] = pixels.mask_features
    for i, level in enumerate(pixels.levels):
        out[f"pixel_decoder.multi_scale.{i}"] = level

    rows = torch.from_numpy(kit.text(network.clip.embed_dim))
    void = F.normalize(network.void_embedding.weight, dim=-1)
    classifier = torch.cat((rows, void))
    counts, seen = cases["num_templates"], cases["seen"]

    def logits(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        cosines = scale.exp().clamp(max=100) * F.normalize(x, dim=-1) @ classifier.T
        parts = [part.amax(-1) for part in cosines[..., :-1].split(counts, dim=-1)]
        return torch.stack([*parts, cosines[..., -1]], dim=-1)

    small = [F.interpolate(pixels.mask_features, size=s, mode="bilinear", align_corners=False).flatten(2) for s in sizes]
    for i, head in enumerate(heads):
        p = f"predictor.head{i}."
        out[p + "decoder_norm"] = calls["decoder_norm"][i].transpose(0, 1)
        out[p + "mask_embed"] = calls["mask_embed"][i]
        out[p + "mask_pool"] = pool_over_masks(pixels.mask_features, head.mask_logits)
        out[p + "mask_pool_proj"] = calls["mask_pool_proj"][i]
        out[p + "class_embed"] = calls["class_embed"][i]
        out[p + "in_vocab_logits"] = logits(head.query_embeddings, decoder.logit_scale)
        out[p + "pred_masks"] = head.mask_logits
        out[p + "attn_mask_blocked"] = (torch.bmm(calls["mask_embed"][i], small[i % 3]) < 0).float()

    # What ships: the network's own call (without the early heads) and the production scoring.
    proposals = network(torch.from_numpy(image).permute(2, 0, 1)[None])
    height, width = image.shape[:2]
    names = [f"class {k}" for k in range(len(counts))]
    # Concept l of class k is called "k/l", so that `training_concepts` can mark a class as seen.
    classes = tuple(
        VocabularyClass(name, tuple(f"{k}/{j}" for j in range(count)), name, (k, 0, 0))
        for k, (name, count) in enumerate(zip(names, counts, strict=True))
    )
    prepared = prepare_classifier(
        Vocabulary("parity", classes),
        rows.numpy(),
        classifier="ensemble",
        merge_classes=False,
        void=network.void_embedding.weight[0],
        in_logit_scale=decoder.logit_scale.item(),
        out_logit_scale=network.clip.logit_scale.item(),
        alpha=cases["alpha"],
        beta=cases["beta"],
        training_concepts=[f"{k}/0" for k, s in enumerate(seen) if s],
    )
    scorer = Scorer()
    class_map = scorer.class_map(proposals, prepared, output_size)
    out["final.sem_seg"] = class_map
    out["final.argmax"] = scorer.score(proposals, prepared, output_size)[0].labels.float()
    masks = proposals.mask_logits
    out["post.mask_for_pooling"] = F.interpolate(masks, size=features.dense.shape[-2:], mode="bilinear", align_corners=False)
    out["post.clip_mask_embed"] = proposals.pooled_embeddings
    if not network.clip.is_resnet:
        out["post.pooled_clip_dense"] = pool_over_masks(features.dense, out["post.mask_for_pooling"])
    else:
        assert proposals.pooled_valid is not None
        out["post.valid_mask"] = proposals.pooled_valid[..., None].float()
    out["post.text_classifier_with_void"] = classifier
    out["post.out_vocab_logits"] = logits(proposals.pooled_embeddings, network.clip.logit_scale)
    in_log = logits(proposals.query_embeddings, decoder.logit_scale)[..., :-1].log_softmax(-1)
    out_log = out["post.out_vocab_logits"][..., :-1].log_softmax(-1)
    weight = torch.tensor([cases["alpha"] if s else cases["beta"] for s in seen]).expand_as(in_log)
    if proposals.pooled_valid is not None:
        weight = weight * proposals.pooled_valid[..., None]
        out_log = torch.where(proposals.pooled_valid[..., None], out_log, torch.zeros_like(out_log))
    out["post.ensemble_log"] = (1 - weight) * in_log + weight * out_log
    without_void, _ = scorer._matrices(proposals, prepared)
    void_probability = 1 - without_void.sum(dim=0)
    out["post.void_prob"] = void_probability[None, :, None]
    with_void = torch.cat((without_void.T, void_probability[:, None]), dim=-1)
    out["post.class_probs_with_void"] = with_void[None]
    out["post.mask_cls_log"] = (with_void + 1e-8).log()
    out["post.mask_cls_softmax_no_void"] = without_void.T
    padded = F.interpolate(masks, size=proposals.padded_size, mode="bilinear", align_corners=False)[0, :, :height, :width]
    out["post.pred_masks_full"] = F.interpolate(padded[None], size=output_size, mode="bilinear", align_corners=False)[0]
    return out


def compare(recorded: dict, tensor: torch.Tensor, name: str, tolerances: list[tuple[str, float]]) -> dict:
    """Errors over the samples and of the mean of the whole tensor."""
    values = tensor.detach().float().numpy()
    if list(values.shape) != list(recorded["shape"]):
        return {"verdict": f"shape {list(values.shape)} instead of {recorded['shape']}"}
    flat, total = values.ravel(), values.size
    count = min(64, total)
    index = [(i * (total - 1)) // (count - 1) for i in range(count)] if count > 1 else [0]
    error = np.abs(flat[index].astype(np.float64) - np.asarray(recorded["sample"], np.float64))
    error = np.where(np.isnan(np.asarray(recorded["sample"], np.float64)), 0, error)
    tolerance = next(limit for pattern, limit in tolerances if re.match(pattern, name))
    return {
        "max": float(error.max()),
        "mean": float(error.mean()),
        "p99": float(np.percentile(error, 99)),
        "error_of_mean": abs(float(flat.mean(dtype=np.float64)) - recorded["mean"]),
        "tolerance_mean": tolerance,
        "verdict": "ok" if error.mean() <= tolerance else "OUTSIDE",
    }


def report(path: Path) -> dict:
    """Run every case of a file."""
    torch.set_num_threads(REFERENCE_THREADS)
    cases = json.loads(path.read_text())
    folder, variant = path.resolve().parent, cases["variant"]
    kit = load_kit(folder)
    network = build(folder, variant)
    results = {}
    for name, case in cases["cases"].items():
        (height, width), output_size = parse_name(name)
        image = kit.image(height, width)
        if int(image.sum(dtype=np.int64)) != case.get("image", {}).get("sum", int(image.sum(dtype=np.int64))):
            raise SystemExit(f"case {name}: the kit's image differs from the recorded one")
        with torch.inference_mode():
            tensors = record(network, image, tuple(case.get("output_hw") or output_size), kit, cases)
        results[name] = {
            key: compare(recorded, tensors[key], key, TOLERANCES[variant]) if key in tensors else {"verdict": "not computed here"}
            for key, recorded in case["tensors"].items()
        }
    checked = [entry["verdict"] for case in results.values() for entry in case.values()]
    verdict = "ok" if all(v in ("ok", "not computed here") for v in checked) else "OUTSIDE"
    end_to_end = {name: case["final.sem_seg"].get("mean") for name, case in results.items() if "final.sem_seg" in case}
    return {"variant": variant, "verdict": verdict, "sem_seg_mean_error": end_to_end, "cases": results}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--json", type=Path, help="write the report there instead of printing it")
    arguments = parser.parse_args()
    result = report(arguments.cases)
    text = json.dumps(result, indent=1)
    if arguments.json:
        arguments.json.write_text(text)
    else:
        print(text)
    return 0 if result["verdict"] == "ok" else 1


if __name__ == "__main__":
    sys.exit(main())
