"""Recipe: a masked autoencoder whose masks are learned from the downstream task, pretrain -> finetune -> mask.

MLO-MAE: "Downstream Task Guided Masking Learning in Masked Autoencoders Using Multi-Level Optimization" (TMLR 2025).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from multilevel.levels import Finetune, MaskedAutoencoder, MaskedPretrain, MaskingNetwork, MaskLearning
from multilevel.levels.masks import POLICIES
from multilevel.levels.tasks import TASKS, Task, TaskData
from multilevel.levels.tasks.classification import Classification, PooledLinear
from multilevel.problems import Graph, Problem
from multilevel.problems.randomness import RandomState
from multilevel.recipes.base import Recipe
from multilevel.recipes.data import ImageLoader, load_data
from multilevel.recipes.data import Part as ImagePart
from multilevel.recipes.evaluation import evaluate_features, raw_pixels
from multilevel.recipes.export.trained import TrainedModel
from multilevel.recipes.pictures import draw_masks, reconstruct_pixels
from multilevel.recipes.settings import LevelSettings, LowerLevelSettings, RunSettings, chosen_device, require
from multilevel.recipes.training import level_arguments
from multilevel.solvers import DataError
from multilevel.solvers.registry import build

PATHS = ("both", "direct")
PICTURED = 8


@dataclass(kw_only=True)
class ModelSettings:
    """Sizes of the autoencoder: a vision transformer, and the decoder that pretraining needs.

    ``learning_rate`` suits the size; ``levels.pretrain.learning_rate`` takes it where nothing else is said.
    """

    patch_size: int
    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    learning_rate: float

    def sizes(self) -> dict[str, int]:
        """Every setting but the learning rate."""
        return {name: value for name, value in vars(self).items() if name != "learning_rate"}


@dataclass(kw_only=True)
class MaskSettings:
    """Which patches are hidden (policy), how many (ratio), and how their losses are weighted (weights)."""

    policy: str
    ratio: float
    weights: str


@dataclass(kw_only=True)
class GuidedMaeLevels:
    """The three levels."""

    pretrain: LowerLevelSettings
    finetune: LowerLevelSettings
    mask: LevelSettings


@dataclass(kw_only=True)
class GuidedMaeSettings(RunSettings):
    """See ``config/recipe/guided_mae.yaml`` for what each setting means."""

    model: ModelSettings
    task: Any
    mask: MaskSettings
    paths: str
    levels: GuidedMaeLevels

    def check(self) -> None:
        """Raise SettingError for the first setting that cannot work."""
        super().check()
        model, size = self.model, self.data.image_size
        for name, value in model.sizes().items():
            require(f"model.{name}", value, value >= 1, "a whole number of at least 1")
        fits = size % model.patch_size == 0
        require("model.patch_size", model.patch_size, fits, f"a divisor of data.image_size={size}")
        for part in ("", "decoder_"):
            width, heads = getattr(model, f"{part}width"), getattr(model, f"{part}heads")
            usable = width % heads == 0 and width % 4 == 0
            require(f"model.{part}width", width, usable, f"a multiple of 4 and of model.{part}heads={heads}")
        patches = (size // model.patch_size) ** 2
        ratio = self.mask.ratio
        require("mask.ratio", ratio, 0 < ratio < 1, "a share above 0 and below 1")
        seen = int(patches * (1 - ratio))
        expected = f"a share that hides at least one of {patches} patches and leaves at least one"
        require("mask.ratio", ratio, 0 < seen < patches, expected)
        require("task", self.task["name"], self.task["name"] in TASKS, f"one of {', '.join(TASKS)}")
        require("paths", self.paths, self.paths in PATHS, f"one of {', '.join(PATHS)}")


class GuidedMae(Recipe):
    """Level 1 pretrains an autoencoder on masked images, level 2 trains a classifier on its encoder, level 3 updates
    the masking network so that the classifier's loss on held-out labelled data falls.

    With ``mask.policy=random`` there is no level 3; without labels, level 1 alone (and the policy must be random).
    """

    settings_class: ClassVar[type[RunSettings]] = GuidedMaeSettings
    settings: GuidedMaeSettings

    def __init__(self, settings: GuidedMaeSettings) -> None:
        settings.check()
        self.settings = settings
        self.policy = build("mask.policy", POLICIES, settings.mask.policy, {})
        targets = TASKS[settings.task["name"]].targets
        self.data = load_data(settings.data, allow_no_mask=not self.policy.guided, targets=targets)
        if self.policy.guided and not self.data.labelled:
            raise DataError(
                "the images have no labels, which learning to mask needs: give each class a folder of its own, "
                "or set mask.policy=random to pretrain alone"
            )
        self.task: Any = self._new_task()  # None without labels, where no level needs one
        self.device = chosen_device(settings.device)
        self.modules = self._new_modules()
        names = ["pretrain", *(["finetune"] if self.data.labelled else []), *(["mask"] if self.policy.guided else [])]
        self._levels: dict[str, LevelSettings] = {name: getattr(settings.levels, name) for name in names}
        made: dict[str, Any] = {"pretrain": self._pretrain, "finetune": self._finetune, "mask": self._mask}
        self.graph = Graph(*(made[name]() for name in names), approximate=settings.approximate)
        self.images_per_step = self._count_images()

    def write_pictures(self, folder: Path) -> list[Path]:
        guided, data = self.policy.guided, self.data
        part = data.mask if guided else data.pretrain  # never the test split
        pixels = part.pixels(torch.arange(min(PICTURED, len(part))))
        images = data.normalize(pixels.to(self.device))
        with torch.no_grad(), RandomState.seeded(self.settings.seed).active():
            patches = self.modules["pretrain"].patches
            logits = self.modules["mask"](images) if guided else images.new_zeros(len(images), patches)
            scores = self.policy.scores(logits)
        hidden, reconstruction = reconstruct_pixels(self.modules["pretrain"], images, scores, data.mean, data.std)
        path = folder / "masks.png"
        probabilities = logits.sigmoid() if guided else None
        draw_masks(path, pixels / 255, probabilities, hidden, reconstruction, self.settings.model.patch_size)
        return [path]

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        if not self.data.labelled:
            return None
        encoders = {
            "trained encoder": self.modules["pretrain"].features,
            "untrained encoder": self._new_modules()["pretrain"].features,
            "raw pixels": raw_pixels,
        }
        return evaluate_features(encoders, self.data, self.settings.evaluation, self.device)

    def trained_model(self) -> TrainedModel:
        head = self.modules.get("finetune")
        classifier = head.linear if isinstance(self.task, Classification) and isinstance(head, PooledLinear) else None
        return TrainedModel(self.modules["pretrain"], classifier, self.data, self.device)

    def _new_task(self) -> Task | None:
        """The downstream task, where the data has labels for it."""
        data = self.data
        if not data.labelled:
            return None
        facts = TaskData(data.target_names, data.target_counts, data.image_size, self.settings.model.patch_size)
        options = {key: value for key, value in self.settings.task.items() if key != "name"}
        return build("task", TASKS, self.settings.task["name"], {"data": facts, **options})

    def _new_modules(self) -> dict[str, Any]:
        """Every level's module with the initial weights of this run's seed."""
        model, data = self.settings.model, self.data
        with RandomState.seeded(self.settings.seed).active():
            sizes = {"image_size": data.image_size, "channels": data.channels}
            modules: dict[str, nn.Module] = {
                "pretrain": MaskedAutoencoder.of_size(**sizes, **model.sizes(), mask_ratio=self.settings.mask.ratio),
                **({"finetune": self.task.new_head(model.width)} if self.task else {}),
                # A quarter of the encoder's width: about a hundredth of its parameters, or fewer.
                "mask": MaskingNetwork(**sizes, patch_size=model.patch_size, width=max(8, model.width // 4)),
            }
        return {name: module.to(self.device) for name, module in modules.items()}

    def _pretrain(self) -> Problem:
        mask = self.settings.mask
        keywords = self._arguments("pretrain", self.data.pretrain, augmented=True)
        return MaskedPretrain(
            "pretrain", self.modules["pretrain"], policy=self.policy, weights=mask.weights, **keywords
        )

    def _finetune(self) -> Problem:
        through_encoder = self.settings.paths == "both"
        keywords = self._arguments("finetune", self.data.finetune, augmented=True)
        head = self.modules["finetune"]
        return Finetune("finetune", head, task=self.task, through_encoder=through_encoder, **keywords)

    def _mask(self) -> Problem:
        keywords = self._arguments("mask", self.data.mask, augmented=False)
        return MaskLearning("mask", self.modules["mask"], task=self.task, **keywords)

    def _arguments(self, name: str, part: ImagePart, augmented: bool) -> dict[str, Any]:
        data = self.settings.data
        loader = ImageLoader(
            part,
            self.data.normalize,
            data.batch_size,
            flip=data.flip and augmented,
            crop_scale=data.crop_scale if augmented else 1.0,
        )
        trained = level_arguments(self._levels, self.settings.solver, name, self.modules[name], self.settings.steps)
        return {"data": loader, **trained}

    def _count_images(self) -> int:
        total, updates = 0, 1
        for level in reversed(self.graph.names):
            problem = self.graph.problems[level]
            updates *= 1 if level == self.graph.top else problem.steps
            total += updates * problem.accumulate * self.settings.data.batch_size
        return total
