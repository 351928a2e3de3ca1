"""Recipe: a masked autoencoder that learns its masks from the downstream task, pretrain -> finetune -> mask.

Follows: MLO-MAE, "Downstream Task Guided Masking Learning in Masked Autoencoders Using Multi-Level Optimization" (TMLR
2025); its settings are ``experiment=cifar10_paper``, ``cifar100_paper`` and ``imagenet_paper``.

Result: ``multilevel train``: a linear probe reaches 92.8% on the digits, against 91.6% with an untrained encoder (seed
0). docs/results.md shows whether guided masks pay, at scales of minutes to hours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import nn

from multilevel.levels import AdversarialMask, Finetune, MaskedAutoencoder, MaskedPretrain, MaskingNetwork, MaskLearning
from multilevel.levels.masked_pretrain import GradientName, Guidance, WeightsName, check_choice
from multilevel.levels.masks import POLICIES, MaskPolicy
from multilevel.levels.tasks import TASKS, Task, TaskData
from multilevel.levels.tasks.classification import ClassificationTask, PooledLinear
from multilevel.problems import Graph, Problem
from multilevel.problems.evaluation.randomness import RandomState
from multilevel.recipes.data import DataSettings, ImageLoader, Split, load_data
from multilevel.recipes.encoder import EncoderRecipe
from multilevel.recipes.evaluation import Candidate, EvaluationSettings, Score, Setup, evaluate_features, raw_pixels
from multilevel.recipes.evaluation.supervised import supervised_candidate
from multilevel.recipes.export.trained import TrainedModel
from multilevel.recipes.initial import InitialModel, read_initial
from multilevel.recipes.pictures.trained_masks import TrainedMasks
from multilevel.recipes.settings import LevelSettings, LowerLevelSettings, RunSettings
from multilevel.recipes.training import level_arguments
from multilevel.solvers import DataError
from multilevel.solvers.ranges import Above, Below, Count, NonNegative, OneOf, PositiveNumber, require
from multilevel.solvers.registry import build

PATHS = ("both", "direct")
#: Up to this many token elements per batch, a second CPU thread costs more than it saves (docs/performance.md).
SMALL = 2**17


@dataclass(kw_only=True)
class ModelSettings:
    """Sizes of the autoencoder: a vision transformer, and the decoder for pretraining; 0 takes the checkpoint's.

    Args:
        patch_size: height and width of a patch, in pixels; it divides data.image_size.
        width: width of the encoder's tokens, a multiple of 4 and of the number of heads.
        depth: number of the encoder's blocks.
        heads: number of the encoder's attention heads.
        decoder_width: width of the decoder's tokens, a multiple of 4 and of the number of its heads.
        decoder_depth: number of the decoder's blocks.
        decoder_heads: number of the decoder's attention heads.
        learning_rate: learning rate of pretraining, suited to the size; the default of levels.pretrain.learning_rate.
    """

    patch_size: Count
    width: Count
    depth: Count
    heads: Count
    decoder_width: Count
    decoder_depth: Count
    decoder_heads: Count
    learning_rate: float

    def sizes(self) -> dict[str, int]:
        """Every setting except the learning rate."""
        return {name: value for name, value in vars(self).items() if name != "learning_rate"}


@dataclass(kw_only=True)
class MaskSettings:
    """The choice and share of hidden patches, and the path of hypergradients to the masking network.

    Args:
        policy: guided by the downstream task: sampled, topk (published), stratified (some patches of every rank) or
            weighted (random masks, weighted losses); adversarial, which raises the reconstruction loss; without a
            masking network: random (a plain masked autoencoder), block, attention or variance.
        options: options of the policy, as in mask.policy=attention mask.options={hint:0.1}.
        ratio: share of the patches to hide.
        weights: weights of the hidden patches' losses: normalized to sum to 1 in each image, or raw (published).
        gradient: how a hypergradient reaches the masking network: weights (of the losses; published), visibility
            (through the encoder's input, straight-through, with uniform weights), both; choice (through the
            distribution of the masks, a noisy estimate, with constant weights) or weights+choice, with
            mask.policy=sampled.
        draws: number of masks for each image; a batch then has as many times fewer images. With mask.gradient=choice
            each mask is compared with the others of its image, which removes the differences between images.
        guidance: share of the images with masks from the policy; the others get random masks. Values below 1 counteract
            a collapse to one mask for all images, as do the next two settings.
        temperature: divisor of the masking network's logits.
        entropy_bonus: weight of the entropy of each image's probabilities (0 to 1), which is subtracted from the mask
            level's loss.
    """

    policy: Annotated[str, OneOf(*POLICIES)]
    options: dict[str, Any] | None = None
    ratio: Annotated[float, Above(0), Below(1)]
    weights: WeightsName
    gradient: GradientName = "weights"
    draws: Count = 1
    guidance: Guidance = 1.0
    temperature: PositiveNumber = 1.0
    entropy_bonus: NonNegative = 0.0

    def check(self, patches: int, images: int) -> None:
        """Raise SettingError for the first unusable setting for this number of patches, and of images in a batch."""
        visible = int(patches * (1 - self.ratio))
        expected = f"a share that hides at least one of {patches} patches and leaves at least one"
        require("mask.ratio", self.ratio, 0 < visible < patches, expected)
        require("mask.draws", self.draws, images % self.draws == 0, f"a divisor of data.batch_size={images}")
        check_choice(self.gradient, POLICIES[self.policy])

    def pretraining(self) -> dict[str, Any]:
        """The arguments of the pretraining level, apart from the policy."""
        return {name: getattr(self, name) for name in ("weights", "gradient", "guidance", "draws")}

    def new_policy(self) -> MaskPolicy:
        """Raise SettingError for an unknown option."""
        return build("mask.options", POLICIES, self.policy, self.options or {})


@dataclass(kw_only=True)
class GuidedMaeLevels:
    """The three levels."""

    pretrain: LowerLevelSettings
    finetune: LowerLevelSettings
    mask: LevelSettings


@dataclass(kw_only=True)
class GuidedMaeSettings(RunSettings):
    """Settings of ``recipe=guided_mae``.

    Args:
        checkpointing: recompute the transformer blocks' activations when they are differentiated instead of keeping
            them: less memory, more time, the same result.
        init: the weights to start a new run from: a run, an export, or a released autoencoder in the format of
            transformers, a folder or a name on the Hugging Face Hub.
        init_statistics: mean and deviation that normalize the images with init=RUN or EXPORT: keep (those that its
            weights were trained with) or own (those of this run's images).
        task: the task of finetuning, and its options (task.loss, task.metric, task.overlap).
        paths: how the masks reach the finetuned head: both (mask -> pretrain and mask -> finetune -> pretrain) or
            direct (only the first).
    """

    data: DataSettings
    model: ModelSettings
    checkpointing: bool = False
    init: str | None = None
    init_statistics: Annotated[str, OneOf("keep", "own")] = "keep"
    task: Any = field(default_factory=lambda: {"name": "classification"})
    mask: MaskSettings
    paths: Annotated[str, OneOf(*PATHS)]
    levels: GuidedMaeLevels
    evaluation: EvaluationSettings

    def validate(self) -> None:
        """Raise SettingError for the first unusable setting."""
        super().validate()
        split, share = self.evaluation.split, self.data.validation_share
        usable = split != "validation" or share > 0
        require("evaluation.split", split, usable, f"test, or data.validation_share above {share:g}")
        model, size = self.model, self.data.image_size
        fits = size % model.patch_size == 0
        if self.init is not None:
            require("data.image_size", size, fits, f"a multiple of {model.patch_size}, the patches of init={self.init}")
        require("model.patch_size", model.patch_size, fits, f"a divisor of data.image_size={size}")
        for part in ("", "decoder_"):
            width, heads = getattr(model, f"{part}width"), getattr(model, f"{part}heads")
            usable = width % heads == 0 and width % 4 == 0
            require(f"model.{part}width", width, usable, f"a multiple of 4 and of model.{part}heads={heads}")
        self.mask.check((size // model.patch_size) ** 2, self.data.batch_size)
        require("task", self.task["name"], self.task["name"] in TASKS, f"one of {', '.join(TASKS)}")


class GuidedMae(EncoderRecipe):
    """Level 1 pretrains an autoencoder on masked images, level 2 trains a head on its encoder, level 3 updates the
    masking network to lower the head's loss on held-out labelled data.

    With ``mask.policy=adversarial``, level 3 makes reconstruction harder instead; policies without a masking network
    have no level 3. Without labels there is no level 2.
    """

    settings_class: ClassVar[type[RunSettings]] = GuidedMaeSettings
    encoder_level = "pretrain"
    settings: GuidedMaeSettings

    def __init__(self, settings: GuidedMaeSettings) -> None:
        self.initial = None if settings.init is None else read_initial(settings.init)
        if self.initial is not None:
            self.notes = (self.initial.size(settings.model, settings.data),)
        super().__init__(settings)
        self.policy = settings.mask.new_policy()
        downstream = self.policy.learns_from == "downstream"
        self.held_out_from = {"mask": "finetune"} if downstream else {}
        targets = TASKS[settings.task["name"]].targets
        self.data = self.image_data = load_data(settings.data, allow_no_mask=not downstream, targets=targets)
        if downstream and not self.data.labelled:
            raise DataError(
                "the images have no labels, but learning to mask needs them: put each class into its own folder, "
                "or set mask.policy=random to only pretrain"
            )
        self.task: Any = self._new_task()  # None without labels, when no level needs it
        self.notes += self.task.notes if self.task else ()
        self.modules = self._new_modules()
        learns = self.policy.learns_from is not None
        if self.initial is not None:
            self._continue(self.initial, learns)
        names = ["pretrain", *(["finetune"] if self.data.labelled else []), *(["mask"] if learns else [])]
        self._levels: dict[str, LevelSettings] = {name: getattr(settings.levels, name) for name in names}
        makers: dict[str, Any] = {"pretrain": self._pretrain, "finetune": self._finetune, "mask": self._mask}
        self.graph = Graph(*(makers[name]() for name in names), approximate=settings.approximate)
        self.images_per_step = self._count_images(*self.graph.names)
        self.encoder_passes = settings.steps * self._count_images("pretrain", "finetune")
        self.one_thread = self.numbers_in_a_batch() <= SMALL and self.device.type == "cpu"
        if self.one_thread and settings.threads is None and torch.get_num_threads() > 1:
            self.notes += ("one CPU thread, since more would slow down operations of this size (threads=N uses N)",)

    @property
    def class_counts(self) -> Sequence[int]:
        return super().class_counts if TASKS[self.settings.task["name"]].targets == "labels" else ()

    def write_pictures(self, folder: Path) -> list[Path]:
        path = folder / "masks.png"
        self._masks().draw(path, self.settings.model.patch_size, self.settings.mask.guidance)
        return [path]

    def findings(self) -> dict[str, Any]:
        """``mask_predictability``: how far the policy's masks are from random, see ``mask_predictability``; and
        ``TrainedMasks.signal``."""
        masks = self._masks()
        return {"mask_predictability": masks.predictability(), **masks.signal(self.settings.evaluation.batch_size)}

    def _masks(self) -> TrainedMasks:
        return TrainedMasks(self.policy, self.modules, self.data, self.device, self.settings.seed)

    def evaluate(self) -> list[Score] | None:
        if self.task is None:
            return None
        settings = self.settings.evaluation
        return evaluate_features(self.candidates(settings.references), self.setup(), settings)

    def candidates(self, references: Any) -> list[Candidate]:
        settings, trained = self.settings, self.modules["pretrain"]
        candidates = [Candidate("trained encoder", trained.features, trained)]
        if references:
            untrained = self._new_modules()["pretrain"]
            name = "untrained encoder" if self.initial is None else self.initial.reference
            candidates += [Candidate(name, untrained.features, untrained), Candidate("raw pixels", raw_pixels)]
        if references == "supervised":
            scratch = self._new_modules(scratch=True)["pretrain"]
            candidates.append(supervised_candidate(scratch, self.encoder_passes, settings.model.learning_rate))
        return candidates

    def setup(self) -> Setup:
        data = self.settings.data
        return Setup(self.data, self.task, self.device, self.settings.precision, data.flip, data.crop_scale)

    def head_training(self, head: nn.Module) -> tuple[Any, Any, int, int]:
        settings, size = self.settings, self.settings.data.batch_size
        arguments = level_arguments(self._levels, settings.solver, "finetune", head, settings.steps)
        updates = settings.steps * self._count_images("finetune") // size
        return arguments["optimizer"], arguments["scheduler"], updates, size

    def trained_model(self) -> TrainedModel:
        head: Any = self.modules.get("finetune")
        pooled = isinstance(self.task, ClassificationTask) and isinstance(head, PooledLinear)
        masking = self.modules["mask"] if self.policy.learns_from is not None else None
        return TrainedModel(
            self.modules["pretrain"],
            head.linear if pooled else None,
            self.data,
            self.device,
            masking,
            asdict(self.settings.mask),
        )

    def _continue(self, initial: InitialModel, learns: bool) -> None:
        """Take everything but the autoencoder from the model that ``init`` names, and note what was taken."""
        settings = self.settings
        masking, head = self.modules["mask"] if learns else None, self.modules.get("finetune")
        names = self.task.data.class_names if self.task else ()
        self.notes += initial.hand_over(masking, head, settings.task["name"], names)
        if settings.init_statistics == "keep":
            self.data, said = initial.keep_statistics(self.data)
            self.image_data = self.data
            self.notes += said
        data, temperature = settings.data, settings.mask.temperature
        now = {"data.fit": data.fit, "data.tiles": data.tiles, "mask.temperature": temperature}
        self.notes += initial.changes(now)

    def _new_task(self) -> Task | None:
        """The downstream task; None without labels for it."""
        data = self.data
        if not data.labelled:
            return None
        facts = TaskData(data.target_names, data.target_counts, data.image_size, self.settings.model.patch_size)
        options = {key: value for key, value in self.settings.task.items() if key != "name"}
        task = build("task", TASKS, self.settings.task["name"], {"data": facts, **options})
        self.settings.evaluation.check_task(task)
        self.settings.evaluation.check_labels(data)
        return task

    def _new_modules(self, scratch: bool = False) -> dict[str, Any]:
        """Every level's module with the initial weights of this run's seed, without ``init`` if ``scratch``."""
        model, data = self.settings.model, self.data
        with RandomState.seeded(self.settings.seed).active():
            sizes = {"image_size": data.image_size, "channels": data.channels}
            modules: dict[str, nn.Module] = {
                "pretrain": self._new_autoencoder(**sizes, scratch=scratch),
                **({"finetune": self.task.new_head(model.width)} if self.task else {}),
                # A quarter of the encoder's width, and at most about a hundredth of its parameters.
                "mask": MaskingNetwork(
                    **sizes,
                    patch_size=model.patch_size,
                    width=max(8, model.width // 4),
                    temperature=self.settings.mask.temperature,
                ),
            }
        return {name: module.to(self.device) for name, module in modules.items()}

    def _new_autoencoder(self, image_size: int, channels: int, scratch: bool) -> MaskedAutoencoder:
        ratio = self.settings.mask.ratio
        if self.initial is not None and not scratch:
            autoencoder = MaskedAutoencoder(self.initial.autoencoder(image_size, ratio))
        else:
            sizes = self.settings.model.sizes()
            autoencoder = MaskedAutoencoder.of_size(image_size=image_size, channels=channels, **sizes, mask_ratio=ratio)
        if self.settings.checkpointing:
            autoencoder.rematerialize_blocks()
        return autoencoder

    def _pretrain(self) -> Problem:
        arguments = self._arguments("pretrain", self.data.pretrain)
        return MaskedPretrain(policy=self.policy, **self.settings.mask.pretraining(), **arguments)

    def _finetune(self) -> Problem:
        through_encoder = self.settings.paths == "both"
        arguments = self._arguments("finetune", self.data.finetune)
        return Finetune(task=self.task, through_encoder=through_encoder, **arguments)

    def _mask(self) -> Problem:
        bonus = self.settings.mask.entropy_bonus
        if self.policy.learns_from == "downstream":
            arguments = self._arguments("mask", self.data.mask, augmented=False)
            return MaskLearning(task=self.task, entropy_bonus=bonus, **arguments)
        return AdversarialMask(policy=self.policy, entropy_bonus=bonus, **self._arguments("mask", self.data.pretrain))

    def _arguments(self, name: str, part: Split, augmented: bool = True) -> dict[str, Any]:
        """Arguments of a level's Problem."""
        data, module = self.settings.data, self.modules[name]
        loader = ImageLoader(
            part,
            self.data.normalize,
            data.batch_size,
            flip=data.flip and augmented,
            crop_scale=data.crop_scale if augmented else 1.0,
        )
        updates = level_arguments(self._levels, self.settings.solver, name, module, self.settings.steps)
        return {"name": name, "module": module, "data": loader, **updates}

    def numbers_in_a_batch(self) -> int:
        """The number of token elements in one batch."""
        return self.settings.data.batch_size * self.modules["pretrain"].patches * self.settings.model.width

    def _count_images(self, *names: str) -> int:
        """Images in the batches that some levels take in one step."""
        batches, updates = 0, 1
        for level in reversed(self.graph.names):
            problem = self.graph.problems[level]
            updates *= 1 if level == self.graph.top else problem.steps
            batches += updates * problem.accumulate * (level in names)
        return batches * self.settings.data.batch_size
