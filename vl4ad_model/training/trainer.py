"""Trains the mask decoder under a frozen CLIP: the loop, its checkpoints, and what it writes down.

A run's folder holds `log.jsonl` (a line per report, for plots), `checkpoint.pt` (to go on from), and `model/` (config.json and
decoder.safetensors of the best validated weights, loadable by name everywhere).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vl4ad_model import prompts, registry
from vl4ad_model.errors import TrainingError
from vl4ad_model.image_files import write_bytes
from vl4ad_model.network import checkpoint as weights_files
from vl4ad_model.network.clip import tokenizer
from vl4ad_model.network.fcclip import FCCLIP, FCCLIPConfig
from vl4ad_model.network.mask_decoder import QueryMasks
from vl4ad_model.network.upsampling import STRIDE, blend_cells, cell_colours, nearest_cells, weights_by_colour
from vl4ad_model.network_words import GENERIC_NAMES
from vl4ad_model.scoring import MAX_LOGIT_SCALE
from vl4ad_model.training import data as frames_on_disk
from vl4ad_model.training import naming
from vl4ad_model.training.augmentation import FIRST_PASTED, CutOuts, SeenThings, augment
from vl4ad_model.training.config import TrainingConfig
from vl4ad_model.training.device_crops import DeviceCrops, quiet_worker
from vl4ad_model.training.features import Pyramid, frozen_pyramid, with_pyramids
from vl4ad_model.training.losses import (
    IGNORED,
    LossWeights,
    Targets,
    at_points,
    proposal_losses,
    sample_points,
    sizes_of_segments,
)
from vl4ad_model.training.validation import ValidationResult, validate
from vl4ad_model.training.words import WordSampler
from vl4ad_model.vocabulary import Vocabulary

log = logging.getLogger(__name__)
SMALLEST_GAIN = 1e-4
REPORT_EVERY = 25  # steps
LOSSES = ("total", "mask", "dice", "class", "map", "name", "iou")
NAMED_POINTS = 96  # single pixels per image that the name loss asks for
EASY, HAZARD = 0.2, 3.0  # weights in the name loss of known classes, and of rendered hazard types; cut-outs have 1
SHARPER = (1.0, 1.25, 1.5, 2.0, 2.5)  # factors on the logit scale that `sharpen` tries
SMALLEST_SHARPENING = 1e-3  # what a larger one must gain
MIXED = {"fp16": torch.float16, "bf16": torch.bfloat16}
LOGIT_SCALE = "mask_decoder.logit_scale"
SMALLEST_SEGMENT = 12  # pixels of a crop; less is ignored


class Crops(torch.utils.data.IterableDataset):
    """Endless random crops: (3, h, w) uint8 images, (h, w) int64 labels, and each crop's hazards."""

    def __init__(
        self, files: list[Any], config: TrainingConfig, cutouts: CutOuts | None, copied: list[str], seed: int, known: int
    ) -> None:
        self._files, self._config, self._cutouts, self._copied = files, config, cutouts, copied
        self._seed, self._known = seed, known

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        r = np.random.default_rng([self._seed, worker.id if worker else 0])
        # Cut-outs are pasted afresh; a copy of one that was rendered into a frame would only be a worse picture of it.
        config, seen = self._config, SeenThings(self._copied, cutouts=self._cutouts is None)
        unreadable = 0
        while True:
            files = self._files[int(r.integers(len(self._files)))]
            try:
                frame = frames_on_disk.read_frame(files, self._known)
            except TrainingError as error:
                log.warning("skipped: %s", error)
                unreadable += 1
                if unreadable >= max(20, len(self._files)):
                    raise TrainingError(f"no training image can be read, the last: {error}") from None
                continue
            unreadable = 0
            if config.most_copied:
                seen.remember(frame)
            frame = augment(
                frame, config.crop, config.scales, self._cutouts, r,
                rare_crops=config.rare_crops, seen=seen, most_copied=config.most_copied,
            )  # fmt: skip
            image = torch.from_numpy(np.ascontiguousarray(frame.rgb.transpose(2, 0, 1)))
            yield image, torch.from_numpy(frame.labels.astype(np.int64)), frame.hazards


def collate(samples: list[tuple[Tensor, Tensor, dict[int, str]]]) -> tuple[Tensor, Tensor, list[dict[int, str]]]:
    """Stack images and labels; hazards stay a list."""
    images, labels, hazards = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(labels), list(hazards)


class Decoder(nn.Module):
    """The trained part alone, so that DistributedDataParallel wraps one forward pass of it."""

    def __init__(self, network: FCCLIP) -> None:
        super().__init__()
        self.pixel_decoder, self.mask_decoder = network.pixel_decoder, network.mask_decoder
        self.void_embedding = network.void_embedding

    def forward(
        self, pyramid: Pyramid, points: Tensor, named: Tensor | None, size: tuple[int, int], near: tuple[Tensor, Tensor] | None
    ) -> tuple[list[QueryMasks], Tensor | None, Tensor, Tensor]:
        """Every head, its masks at flat indices `points` (B, P) of `size`; the class embeddings (B, Q, D) of the single pixels
        `named` (B, Q); void; logit scale.

        Args:
            near: cells around the points and their weights, both (B, 4, P); None = bilinear interpolation.
        """
        features = self.pixel_decoder(pyramid)
        maps = features.mask_features
        chosen = at_points(maps, points, size) if near is None else blend_cells(maps, *near)
        heads = self.mask_decoder(features, every_head=True, point_features=chosen)
        of_points = None
        if named is not None:
            single = at_points(features.mask_features, named, size).transpose(1, 2)
            of_points = self.mask_decoder.class_embed(self.mask_decoder._mask_pooling_proj(single))
        # Clones: DistributedDataParallel counts a parameter that is itself an output as ready twice.
        return heads, of_points, self.void_embedding.weight[0].clone(), self.mask_decoder.logit_scale.clone()


class Trainer:
    """One training run.

    Args:
        config: what to do.
        folder: where the run is kept; it is resumed from a checkpoint there.
        report: called with every line of the log.

    Raises:
        TrainingError: data, model or the checkpoint do not fit.
    """

    def __init__(self, config: TrainingConfig, folder: Path, report: Callable[[dict[str, Any]], None] = lambda line: None) -> None:
        self.config, self.folder, self._report = config, Path(folder), report
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed + self.rank)
        self.device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu")
        if config.precision == "fp16" and self.device.type == "cpu":
            raise TrainingError("training in fp16 needs a GPU: use precision bf16 or fp32 on a CPU")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            torch.backends.cudnn.benchmark = True  # crops have one size
        if self.world > 1 and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        self._files = [f for source in config.data for f in frames_on_disk.find_frames(source) for _ in range(source.repeat)]
        self._load_network()
        self._load_words()
        self._load_validation()
        # Depthwise convolutions are faster so on a CPU.
        self._decoder = Decoder(self.network).to(device=self.device)
        self._decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._wrapped: nn.Module = self._decoder
        if self.world > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            # Absent classes leave queries without a loss in some steps.
            self._wrapped = nn.parallel.DistributedDataParallel(self._decoder, device_ids=ids, find_unused_parameters=True)
        self._averaged = copy.deepcopy(self._decoder) if config.ema_decay else self._decoder
        self._optimizer = torch.optim.AdamW(
            _groups(self._decoder, config.weight_decay), lr=config.learning_rate, fused=self.device.type == "cuda"
        )
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.step, self.best, self._since_best = 0, -math.inf, 0
        self._resume()
        # Each process, and each part of a run that was broken off, draws its own points and words.
        torch.manual_seed(config.seed + 1000 * self.rank + self.step)
        self._words.restart(config.seed + 1000 * self.rank + self.step)

    # --- parts ----------------------------------------------------------------------------------------------------------

    def _load_network(self) -> None:
        files = registry.locate(self.config.model)
        if files.clip in (None, files.decoder):
            raise TrainingError(
                f"{self.config.model} has no clip.safetensors: the CLIP that the decoder is trained under must be there"
            )
        if files.decoder is None and self.config.start_from_weights:
            raise TrainingError(f"start_from_weights: {self.config.model} has no decoder's weights to start from")
        self.network, self.model_config = registry.build_network(files)
        trained = self.network.state_dict()
        had = self.model_config
        self.model_config = self._grown(had)
        if self.model_config != had or not self.config.start_from_weights:
            torch.manual_seed(self.config.seed)
            self.network = FCCLIP(self.model_config)
            if self.config.start_from_weights:
                self.network.mask_decoder.start_as_identity(had.decoder_layers)
            kept = {key: value for key, value in trained.items() if self.config.start_from_weights or key.startswith("clip.")}
            self.network.load_state_dict({**self.network.state_dict(), **kept})
        anchored = self.config.anchored_queries
        if anchored is None:
            anchored = had.anchored_queries and self.config.start_from_weights
        self.config = dataclasses.replace(self.config, anchored_queries=anchored)
        self.model_config = dataclasses.replace(self.model_config, anchored_queries=anchored)
        self.network.to(self.device)
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(not name.startswith("clip."))
        self._clip_files = files.clip
        self._frozen = _fingerprint(self.network.clip)

    def _grown(self, had: FCCLIPConfig) -> FCCLIPConfig:
        """The model's configuration with what this run gives it.

        Raises:
            TrainingError: trained parts would have to go.
        """
        config = self.config
        layers = config.decoder_layers or had.decoder_layers
        blocks = had.extra_blocks if config.extra_blocks is None else config.extra_blocks
        fewer = layers < had.decoder_layers or any(new < old for new, old in zip(blocks, had.extra_blocks, strict=True))
        if config.start_from_weights and fewer:
            raise TrainingError(
                f"start_from_weights: the model has {had.decoder_layers} decoder layers and extra blocks {list(had.extra_blocks)}; "
                "'decoder_layers' and 'extra_blocks' can only be as many or more"
            )
        new = dataclasses.replace(had, refined=had.refined or config.refined, extra_blocks=tuple(blocks), decoder_layers=layers)
        if config.colour_tolerance is not None:
            new = dataclasses.replace(new, colour_tolerance=config.colour_tolerance)
        if config.start_from_weights or not had.linear_naming:
            return new
        # That branch names another decoder's features, and its words are not this run's.
        return dataclasses.replace(
            new,
            linear_naming=False,
            related_words=0.0,
            rival_margin=0.0,
            related_rival_margin=0.0,
            classifier="in_vocabulary",
        )

    def _load_words(self) -> None:
        config = self.config
        self.vocabulary = Vocabulary.from_yaml(config.vocabulary) if config.vocabulary else Vocabulary.cityscapes()
        frames_on_disk.require_same_classes((*config.data, *config.validation), self.vocabulary)
        if self.vocabulary.known_count > FIRST_PASTED and (config.cutouts or config.most_copied):
            raise TrainingError(
                f"'cutouts' and 'most_copied' take labels from {FIRST_PASTED} on: "
                f"the vocabulary's {self.vocabulary.known_count} known classes leave them none"
            )
        self.cutouts = CutOuts.load(config.cutouts) if config.cutouts else None
        tokenize, end_token = tokenizer(self.model_config.clip_model, self.model_config.clip_config)
        self.text = prompts.TextEncoder(
            lambda tokens: self.network.clip.encode_text(tokens.to(self.device)),
            tokenize,
            weights_key=self.network.clip.text_weights_key(),
            end_token=end_token,
            # What a GPU computes differs in the last digits; the shared cache holds what a CPU does.
            cache_folder=prompts.default_cache_folder() if self.device.type == "cpu" else None,
        )
        shown = frames_on_disk.hazard_names(list(dict.fromkeys(self._files)), self.vocabulary.known_count)
        shown |= set(self.cutouts.names if self.cutouts else ())
        names = self._names = {name: _training_names(name) for name in sorted(shown)}
        if config.anchored_queries and self.vocabulary.known_count >= self.model_config.queries:
            raise TrainingError(
                f"anchored_queries needs more queries ({self.model_config.queries}) "
                f"than known classes ({self.vocabulary.known_count})"
            )
        self._anchored = self.vocabulary.known_count if config.anchored_queries else 0
        self._words = WordSampler(self.vocabulary, names, self.text, config.seed, paraphrased=config.paraphrased)

    def _load_validation(self) -> None:
        files = [f for source in self.config.validation for f in frames_on_disk.find_frames(source)]
        every = max(1, -(-len(files) // self.config.validation_images))
        known = self.vocabulary.known_count
        self._validation = [frames_on_disk.read_frame(f, known) for f in files[::every]]
        if files and not any((frame.labels < known).any() for frame in self._validation):
            raise TrainingError("the validation images have no pixel of a known class: no weights would be better than others")

    # --- the loop -------------------------------------------------------------------------------------------------------

    def run(self) -> ValidationResult | None:
        """Train to the last step or until patience ends. Returns the last validation."""
        config = self.config
        weights = LossWeights(*(getattr(config, field.name) for field in dataclasses.fields(LossWeights)))
        result, began, reported = None, time.monotonic(), self.step
        if self._all_stop(self._out_of_patience()):
            self._write_log(
                {"step": self.step, "stopped": f"no better for {self._since_best} validations: raise 'patience' to go on"}
            )
            self._save_if_missing()
            return result
        sums = torch.zeros(len(LOSSES), device=self.device)
        for maps, images, labels, hazards in self._batches():
            if self.step >= config.steps:
                break
            sums += self._train_step(maps, images, labels, hazards, weights)
            self.step += 1
            reports = self.step % REPORT_EVERY == 0 or self.step == config.steps
            saves = self.step % config.validate_every == 0 or self.step % config.checkpoint_every == 0
            # A GPU is not kept waiting in every step for the host to read a number.
            if (self.device.type == "cpu" or reports or saves) and not torch.isfinite(sums).all():
                raise TrainingError(f"the loss is not finite by step {self.step}: lower the learning rate, or use fp32")
            if reports:
                count = self.step - reported
                line = {"step": self.step, "of": config.steps, "lr": self._optimizer.param_groups[0]["lr"]}
                line |= {name: round(value / count, 4) for name, value in zip(LOSSES, sums.tolist(), strict=True)}
                line["seconds_per_step"] = round((time.monotonic() - began) / count, 3)
                self._write_log(line)
                began, reported = time.monotonic(), self.step
                sums.zero_()
            if self.step % config.validate_every == 0 or self.step == config.steps:
                result = self._validate()
                began = time.monotonic()
                if self._all_stop(self._out_of_patience()):
                    self._write_log({"step": self.step, "stopped": f"no better for {self._since_best} validations"})
                    self.save_checkpoint()  # so that the same command does not train on
                    break
            if self.step % config.checkpoint_every == 0 or self.step == config.steps:
                self.save_checkpoint()
        if _fingerprint(self.network.clip) != self._frozen:
            raise TrainingError("the frozen CLIP's weights moved during training: this is a bug; discard the run")
        self._save_if_missing()
        return result

    def _batches(self) -> Generator[tuple[Pyramid, Tensor, Tensor, list[dict[int, str]]], None, None]:
        """Endless: CLIP's pyramids of a batch of crops, the crops themselves, their labels and hazards."""
        config = self.config
        copied = sorted(self._names)
        seed = config.seed + 1000 * self.rank + self.step
        pyramid = frozen_pyramid(
            self.network, config.crop, config.batch_size, compiled=config.compiled_backbone, threads=config.threads or 1,
            mixed=MIXED.get(config.precision),
        )  # fmt: skip
        if config.crops_on_device:
            on_device = DeviceCrops(
                self._files, self.vocabulary.known_count, self.device, crop=config.crop, scales=config.scales,
                batch_size=config.batch_size, cutouts=self.cutouts, copied=copied, rare_crops=config.rare_crops,
                most_copied=config.most_copied, workers=config.workers, seed=seed,
            )  # fmt: skip
            return with_pyramids(on_device, pyramid, self.device)
        crops = Crops(self._files, config, self.cutouts, copied, seed, self.vocabulary.known_count)
        loader = torch.utils.data.DataLoader(
            crops, config.batch_size, collate_fn=collate, num_workers=config.workers, pin_memory=self.device.type == "cuda",
            prefetch_factor=4 if config.workers else None, worker_init_fn=quiet_worker,
        )  # fmt: skip
        return with_pyramids(_plain_errors(loader), pyramid, self.device)

    def fit_naming(self, crops: int, on_crops: Callable[[int], None] = lambda done: None) -> int:
        """Fit the decoder's own out-of-vocabulary branch to so many crops; the decoder stays as it is.

        Returns:
            how many things were learned from.

        Raises:
            TrainingError: too few things with a name lie under a mask.
        """
        parts, done = [], 0
        with contextlib.closing(self._batches()) as batches:
            for maps, _, labels, hazards in batches:
                labels = without_specks(labels.to(self.device).long())
                _, things, emphasis, _ = self._targets(labels, hazards)
                parts.append(naming.answers_of(self.network, maps, labels, things, emphasis, anchored=self._anchored))
                done += len(labels)
                on_crops(done)
                if done >= crops:
                    break
        found = naming.Answers.joined(parts)
        weight, bias = naming.fit(found, self._words.sample([]), seed=self.config.seed)
        decoder = self.network.mask_decoder
        decoder.naming = nn.Linear(weight.shape[1], weight.shape[0])
        decoder.naming.load_state_dict({"weight": weight, "bias": bias})
        decoder.to(self.device)
        self.network.register_buffer("training_rows", self._training_rows())
        self.model_config = dataclasses.replace(
            self.model_config, linear_naming=True, related_words=naming.RELATED, **naming.ENSEMBLE
        )
        return len(found.things)

    def _out_of_patience(self) -> bool:
        return bool(self.config.patience) and self._since_best >= self.config.patience

    def _all_stop(self, enough: bool) -> bool:
        """What the first process found, in all: one that went on alone would wait for the others for ever."""
        if self.world == 1:
            return enough
        flag = torch.tensor([float(enough)], device=self.device)
        torch.distributed.broadcast(flag, 0)
        return bool(flag.item())

    def _train_step(
        self, maps: Pyramid, images: Tensor, labels: Tensor, hazards: list[dict[int, str]], weights: LossWeights
    ) -> Tensor:
        """One step. Returns its `LOSSES`, on the device; the weights have moved even where one is not finite."""
        config = self.config
        rate = config.learning_rate * min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        rate *= 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / config.steps)))
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        labels = without_specks(labels.to(self.device, non_blocking=True).long())
        columns, things, emphasis, words = self._targets(labels, hazards)
        points = sample_points(labels, config.points, beside=True)
        named = sample_points(labels, NAMED_POINTS) if config.name_weight else None
        near = self._cells_near(images, points)
        mixed = MIXED.get(config.precision)
        with torch.autocast(self.device.type, dtype=mixed, enabled=mixed is not None):
            heads, of_points, void, logit_scale = self._wrapped(maps, points, named, tuple(labels.shape[-2:]), near)
        losses = proposal_losses(
            [QueryMasks(head.mask_logits.float(), head.query_embeddings.float()) for head in heads],
            points,
            Targets(labels, columns, things.to(self.device), emphasis.to(self.device)),
            words.to(self.device),
            void,
            logit_scale,
            weights=weights,
            anchored=self._anchored,
            known=self.vocabulary.known_count,
            seen_points=None if named is None or of_points is None else (named, of_points.float()),
        )
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(losses["total"]).backward()
        self._scaler.unscale_(self._optimizer)
        if config.clip_gradient_norm:
            nn.utils.clip_grad_norm_(self._decoder.parameters(), config.clip_gradient_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if config.ema_decay:
            decay = min(config.ema_decay, (self.step + 1) / (self.step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(self._averaged.parameters()), list(self._decoder.parameters()), 1 - decay)
        return torch.stack([losses[name].detach() for name in LOSSES])

    def _cells_near(self, images: Tensor, points: Tensor) -> tuple[Tensor, Tensor] | None:
        """What `Decoder` blends at the points; None = what bilinear interpolation does."""
        tolerance = self.model_config.colour_tolerance
        if not tolerance:
            return None
        height, width = images.shape[-2:]
        cells = (height // STRIDE, width // STRIDE)
        index, bilinear = nearest_cells(points, width, cells)
        images = images.to(points.device)
        return index, weights_by_colour(images, cell_colours(images, cells), points, index, bilinear, tolerance)

    def _targets(self, labels: Tensor, hazards: list[dict[int, str]]):
        """Draw the step's words, and say which class column each segment of each image has; void for the unnamed."""
        known = self.vocabulary.known_count
        flat = labels.flatten(1)
        there = torch.zeros(len(flat), 256, dtype=torch.bool, device=flat.device).scatter_(1, flat, True).cpu()
        seen = [[i for i in image.nonzero()[:, 0].tolist() if i != IGNORED] for image in there]
        present = [names[i] for names, ids in zip(hazards, seen, strict=True) for i in ids if i in names]
        words = self._words.sample(present)
        columns = tuple(
            {i: i if i < known else words.columns.get(names.get(i, ""), words.void_column) for i in ids}
            for names, ids in zip(hazards, seen, strict=True)
        )
        things = torch.full((len(hazards), 256), -1, dtype=torch.int64)
        things[:, :known] = torch.arange(known)
        emphasis = torch.ones(len(hazards), 256)
        emphasis[:, :known] = EASY
        for image, names in enumerate(hazards):
            for i, name in names.items():
                things[image, i] = words.things.get(name, -1)
                emphasis[image, i] = HAZARD if len(self._names.get(name, ())) > 1 else 1.0
        return columns, things, emphasis, words

    # --- results --------------------------------------------------------------------------------------------------------

    def _validate(self) -> ValidationResult | None:
        if self.rank == 0 and not self._validation:
            self.save_model(self.folder / "model")
        if self.rank != 0 or not self._validation:
            return None
        trained = {name: value.clone() for name, value in self._decoder.state_dict().items()}
        self._decoder.load_state_dict(self._averaged.state_dict())
        try:
            factors = SHARPER if self.config.sharpen else (1.0,)
            results = validate(self.network, self._validation, self.vocabulary, self.text, factors=factors)
            enough = max(result.score for result in results) - SMALLEST_SHARPENING
            factor, result = next((f, r) for f, r in zip(factors, results, strict=True) if not r.score < enough)
            numbers = {k: None if math.isnan(v) else round(v, 4) for k, v in dataclasses.asdict(result).items()}
            line = {"step": self.step, "validation": numbers}
            if self.config.sharpen:
                line["sharpened"] = factor
            # Patience wants a gain that is one, not the last digit's noise.
            self._since_best = 0 if result.score > self.best + SMALLEST_GAIN else self._since_best + 1
            if result.score > self.best:
                self.best = result.score
                self.save_model(self.folder / "model", sharpened=factor)
                line["best"] = True
            self._write_log(line)
        finally:
            self._decoder.load_state_dict(trained)
        return result

    def _save_if_missing(self) -> None:
        """The present weights where a run that has its steps has no model, such as from its checkpoint alone."""
        model = self.folder / "model"
        if self.rank == 0 and not all((model / name).is_file() for name in ("decoder.safetensors", "config.json")):
            self.save_model(model)

    def save_model(self, folder: Path, *, sharpened: float = 1.0) -> None:
        """Write the averaged decoder (half precision) with its configuration, and the CLIP it belongs to.

        Args:
            sharpened: factor on the logit scale of its class probabilities.
        """
        import filecmp

        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / "clip.safetensors"
        if not (kept.exists() and filecmp.cmp(self._clip_files, kept, shallow=False)):
            _copy(self._clip_files, kept)
        state = dict(self._averaged.state_dict())
        if self.model_config.related_words:
            state["training_rows"] = self._training_rows()
        state[LOGIT_SCALE] = (state[LOGIT_SCALE] + math.log(sharpened)).clamp(max=math.log(MAX_LOGIT_SCALE))
        weights_files.write_safetensors(state, folder / "decoder.safetensors", half=True)
        # Last: a folder without it is no model, whatever the disk had room for.
        write_bytes(folder / "config.json", (json.dumps(self.config_values(), indent=1) + "\n").encode())
        if (folder / registry.CHECKSUMS).is_file():
            registry.write_checksums(folder)

    def config_values(self) -> dict[str, Any]:
        """config.json of the trained model: its own configuration, and the words it was trained with."""
        return {**json.loads(self.model_config.to_json()), "training_concepts": self._training_words()}

    def _training_rows(self) -> Tensor:
        """(L, D) float32 unit text embeddings of the words of the training, in the order of config.json."""
        return torch.from_numpy(self.text.encode_concepts(self._training_words()))

    def _training_words(self) -> list[str]:
        known = [concept for group in self.vocabulary.concept_groups[: self.vocabulary.known_count] for concept in group]
        hazards = [name for names in self._names.values() for name in names]
        before = self.model_config.training_concepts if self.config.start_from_weights else ()
        return list(dict.fromkeys([*before, *known, *hazards, *(GENERIC_NAMES if hazards else ())]))

    def save_checkpoint(self) -> None:
        """Write everything needed to go on, whole or not at all."""
        if self.rank != 0:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "step": self.step,
            "best": self.best,
            "since_best": self._since_best,
            "decoder": self._decoder.state_dict(),
            "averaged": self._averaged.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "config": self.config.to_json(),
            "clip": self._frozen,
            "words": self._words_digest(),
        }
        handle, name = tempfile.mkstemp(dir=self.folder, suffix=".part")
        os.close(handle)
        try:
            torch.save(content, name)
            os.chmod(name, 0o644)
            os.replace(name, self.folder / "checkpoint.pt")
        except BaseException as error:
            Path(name).unlink(missing_ok=True)
            if isinstance(error, (OSError, RuntimeError)):  # torch's own where the disk is full
                raise TrainingError(f"{self.folder}/checkpoint.pt cannot be written: {str(error).splitlines()[0]}") from None
            raise

    def _words_digest(self) -> str:
        return hashlib.sha256(repr(self.vocabulary.concept_groups).encode()).hexdigest()

    def _resume(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.is_file():
            return
        try:
            content = torch.load(path, map_location=self.device, weights_only=True)
            self._decoder.load_state_dict(content["decoder"])
            self._averaged.load_state_dict(content["averaged"])
            self._optimizer.load_state_dict(content["optimizer"])
            for group, decay in zip(self._optimizer.param_groups, (self.config.weight_decay, 0.0), strict=True):
                group["weight_decay"] = decay  # of this run, not of the one that the checkpoint is of
            if content["scaler"] and self._scaler.is_enabled():  # both in fp16
                self._scaler.load_state_dict(content["scaler"])
            self.step, self.best, self._since_best = content["step"], content["best"], content["since_best"]
            then, now = json.loads(content["config"]), json.loads(self.config.to_json())
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise TrainingError(f"cannot resume from {path} ({reason}): use another folder, or delete it to start over") from None
        differing = sorted(name for name in now if name in then and then[name] != now[name])
        for name in ("model", "vocabulary", "anchored_queries"):
            if Path(str(then.get(name))).name != Path(str(now[name])).name:
                raise TrainingError(f"{path} was made with {name} {then.get(name)}, not {now[name]}: use another folder")
        # Every run calls its model's folder "model", so the name alone says little.
        for key, mine, what in (("clip", self._frozen, "another CLIP"), ("words", self._words_digest(), "another vocabulary")):
            if content.get(key, mine) != mine:
                raise TrainingError(f"{path} was made with {what}: use another folder")
        if {"validation", "validation_images"} & set(differing):
            self.best, self._since_best = -math.inf, 0  # scores on other images do not compare
        self._write_log({"step": self.step, "resumed": True} | ({"changed": {n: now[n] for n in differing}} if differing else {}))
        if self.step >= self.config.steps:
            self._write_log({"step": self.step, "stopped": f"the run has its {self.config.steps} steps: ask for more to go on"})

    def _write_log(self, line: dict[str, Any]) -> None:
        if self.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / "log.jsonl"
            try:
                with path.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(line) + "\n")
            except OSError as error:
                raise TrainingError(f"{path} cannot be written: {error.strerror or error}") from None
            self._report(line)


def without_specks(labels: Tensor) -> Tensor:
    """Labels (B, H, W) int64 in 0..255 in which what covers less than `SMALLEST_SEGMENT` pixels of an image is ignored."""
    flat = labels.flatten(1)
    return torch.where(sizes_of_segments(flat) < SMALLEST_SEGMENT, IGNORED, flat).view(labels.shape)


def _copy(source: Path, target: Path) -> None:
    """Copy a file whole or not at all."""
    part = target.with_name(f"{target.name}.part")
    try:
        shutil.copyfile(source, part)
        os.replace(part, target)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise TrainingError(f"cannot write {target}, a copy of {source}: {error.strerror or error}") from None
        raise


def _plain_errors(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches; an error of a loading process in its one line, without the traceback the loader packs it into."""
    try:
        yield from batches
    except TrainingError as error:
        raise TrainingError(str(error).strip().splitlines()[-1].rpartition("TrainingError: ")[2]) from None


def _training_names(name: str) -> tuple[str, ...]:
    """A hazard's name and the synonyms training may use."""
    from vl4ad_model.scenes.hazards import BY_NAME

    hazard = BY_NAME.get(name)
    return (name, *hazard.synonyms) if hazard else (name,)


def _groups(decoder: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Norms, biases and embeddings are not decayed."""
    decayed = [p for p in decoder.parameters() if p.dim() >= 2 and p.shape[0] > 1]
    embeddings = {id(m.weight) for m in decoder.modules() if isinstance(m, nn.Embedding)}
    chosen = {id(p) for p in decayed} - embeddings
    return [
        {"params": [p for p in decoder.parameters() if id(p) in chosen], "weight_decay": weight_decay},
        {"params": [p for p in decoder.parameters() if id(p) not in chosen], "weight_decay": 0.0},
    ]


def _fingerprint(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, tensor in module.state_dict().items():
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
