"""The model that a new run starts from: a run, an export of this project, or a released autoencoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from multilevel.levels import MaskedAutoencoder
from multilevel.levels.models.checkpoints import load_autoencoder, new_autoencoder, read_config
from multilevel.levels.models.masked_autoencoder import SIZES
from multilevel.levels.tasks import TASKS
from multilevel.problems.checkpoint import WEIGHTS, newest_intact
from multilevel.recipes.data import DataSettings, ImageData, load_data
from multilevel.recipes.data.record import DataRecord
from multilevel.recipes.data.settings import KEEP
from multilevel.recipes.export.folder import PROCESSOR
from multilevel.recipes.export.folder import WEIGHTS as EXPORTED
from multilevel.recipes.export.masking import MASKING, load_masking
from multilevel.recipes.export.onnx_model import ONNX
from multilevel.recipes.plain_yaml import read_yaml
from multilevel.solvers import MultilevelError, SettingError
from multilevel.solvers.files import parse_json
from multilevel.solvers.ranges import require

RUN, EXPORT, RELEASED = "run", "export", "released autoencoder"
LISTED = 10  # classes in a line
SEEN = (
    "the test images of this run may be among those that these weights were trained with: compare both models on newer "
    "images (multilevel compare-models)"
)


@dataclass(frozen=True)
class Head:
    """A trained head: its task, its classes by number, and the weights of its linear layer."""

    task: str
    class_names: tuple[str, ...]
    weights: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class InitialModel:
    """The parts of a trained model that a new run continues with.

    Attributes:
        name: the folder or name on the hub, as typed.
        kind: RUN, EXPORT or RELEASED.
        config: the autoencoder's sizes.
        autoencoder_weights: None: transformers reads them from ``name``.
        masking: weights of the masking network; None if none was trained or stored.
        head: None if none was trained or stored.
        mean, std: float32 [C], statistics that normalized its images; None for a released autoencoder.
        trained_with: the settings that it was trained with and that a new run may change, by name.
    """

    name: str
    kind: str
    config: ViTMAEConfig
    autoencoder_weights: Mapping[str, Tensor] | None = None
    masking: Mapping[str, Tensor] | None = None
    head: Head | None = None
    mean: Tensor | None = None
    std: Tensor | None = None
    trained_with: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """The name of its encoder in an evaluation."""
        return "released encoder" if self.kind == RELEASED else "initial encoder"

    def autoencoder(self, image_size: int, mask_ratio: float) -> ViTMAEForPreTraining:
        """Its autoencoder, for images and masks of a new run."""
        if self.autoencoder_weights is None:
            return load_autoencoder(self.name, image_size, mask_ratio)
        return new_autoencoder(self.config, self.autoencoder_weights, image_size, mask_ratio)

    def size(self, model: Any, data: DataSettings) -> str:
        """Set the sizes of 0 in a new run's settings ``model`` to this model's. Returns all sizes in words.

        Raises:
            SettingError: a size, the number of channels or, except for a released autoencoder, the image size differs.
        """
        config, source = self.config, f"as in init={self.name}"
        for name, theirs in SIZES.items():
            value, size = getattr(model, name), getattr(config, theirs)
            require(f"model.{name}", value, value in (0, size), f"{size}, as in {self.name} (or 0, or no model=...)")
            setattr(model, name, size)
        require(
            "data.channels", data.channels, data.channels == config.num_channels, f"{config.num_channels}, {source}"
        )
        if self.kind != RELEASED:
            fits = data.image_size == config.image_size
            require("data.image_size", data.image_size, fits, f"{config.image_size}, {source}")
        sizes = " ".join(f"model.{name}={getattr(model, name)}" for name in SIZES)
        return f"starting from {self.name}: {sizes}"

    def keep_statistics(self, data: ImageData) -> tuple[ImageData, tuple[str, ...]]:
        """The data, normalized as this model's images were, and a line that says so; unchanged for a released
        autoencoder."""
        if self.mean is None or self.std is None:
            return data, ()
        theirs, own = (_in_words(*both) for both in ((self.mean, self.std), (data.mean, data.std)))
        line = f"images are normalized as for {self.name}: {theirs}"
        if theirs != own:
            line += f"; these have {own} (init_statistics=own uses that)"
        return replace(data, mean=self.mean, std=self.std), (line,)

    def hand_over(
        self, masking: nn.Module | None, head: nn.Module | None, task: str, class_names: Sequence[str]
    ) -> tuple[str, ...]:
        """Give a new run's masking network and head the weights of this model's.

        Args:
            masking: the new network; None if the run trains none.
            head: the new head; None if the run trains none.
            task: the task of the new head.
            class_names: its classes, by number.

        Returns:
            Lines that say what was taken, what starts from new weights and what was left out; none for a released
            autoencoder.
        """
        if self.kind == RELEASED:
            return ()
        taken, fresh = ["encoder", "decoder"], []
        if masking is not None:
            if self.masking is None:
                fresh.append(f"the masking network (the {self.kind} holds none)")
            elif _shapes(self.masking) != _shapes(masking.state_dict()):
                fresh.append("the masking network (its sizes differ)")
            else:
                masking.load_state_dict(dict(self.masking))
                taken.append("masking network")
        if head is not None:
            _hand_over_head(self, head, task, tuple(class_names), taken, fresh)
        left = [name for name in self.head.class_names if name not in class_names] if self.head else []
        lines = {
            f"taken from the {self.kind} {self.name}": taken,
            "starting from new weights": fresh,
            "left out": [f"its head for {_listed(left)}"] if left else [],
        }
        return (*(f"{start}: {'; '.join(parts)}" for start, parts in lines.items() if parts), SEEN)

    def changes(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """A line with the settings of a new run that differ from those that this model was trained with."""
        changed = [
            f"{name}={settings[name]} (was {value})"
            for name, value in self.trained_with.items()
            if settings[name] != value
        ]
        return (f"changed since {self.name}: {', '.join(changed)}",) if changed else ()


def _hand_over_head(
    initial: InitialModel, head: nn.Module, task: str, names: tuple[str, ...], taken: list[str], fresh: list[str]
) -> None:
    """Copy the outputs of the classes that both heads have; the outputs before the classes (of boxes) are the same."""
    old, linear = initial.head, getattr(head, "linear", None)
    if old is None:
        fresh.append(f"the head (the {initial.kind} holds none)")
    elif old.task != task:
        fresh.append(f"the head (the {initial.kind}'s is for task={old.task})")
    elif not isinstance(linear, nn.Linear) or linear.weight.shape[1:] != old.weights["weight"].shape[1:]:
        fresh.append("the head (it is of another kind)")
    else:
        common = [name for name in names if name in old.class_names]
        before = linear.out_features - len(names)
        rows = [*range(before), *(before + names.index(name) for name in common)]
        old_rows = [*range(before), *(before + old.class_names.index(name) for name in common)]
        with torch.no_grad():
            for name, parameter in linear.named_parameters():
                parameter[rows] = old.weights[name][old_rows].to(parameter.device)
        if common:
            taken.append(f"head for {_listed(common)}")
        if new := [name for name in names if name not in common]:
            fresh.append(f"the head for {_listed(new)}")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _in_words(mean: Tensor, std: Tensor) -> str:
    numbers = [" ".join(f"{value:.3f}" for value in values.tolist()) for values in (mean, std)]
    return f"mean {numbers[0]}, deviation {numbers[1]}"


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return (folder / "config.yaml").is_file()


def is_export(folder: Path) -> bool:
    """Whether a folder was written by ``multilevel export``."""
    try:
        config = parse_json((folder / "config.json").read_text())
        return (folder / PROCESSOR).is_file() and "decoder_hidden_size" in config and config["model_type"] == "dinov2"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def resolved_init(name: str) -> str:
    """The name with which a run stores its ``init``: of a local folder the path without links, which may be moved."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if is_run(folder) or is_export(folder) else name


def read_initial(name: str) -> InitialModel:
    """Read the model that ``init`` names.

    Args:
        name: a run's folder, an exported folder, or a folder or a name on the hub of a released autoencoder.

    Raises:
        SettingError: it is none of these, or a part of it is missing or broken.
    """
    folder = Path(name).expanduser()
    if is_run(folder):
        return _read_run(name, folder)
    if is_export(folder):
        return _read_export(name, folder)
    return InitialModel(name, RELEASED, read_config(name))


def _read_run(name: str, folder: Path) -> InitialModel:
    try:
        config = read_yaml(folder / "config.yaml")
        checkpoint, _ = newest_intact(folder / "checkpoint", [WEIGHTS], verify=_verified(config))
        weights = load_file(checkpoint / WEIGHTS)
    except (OSError, MultilevelError, SafetensorError) as error:
        raise SettingError("init", name, f"a run with a checkpoint ({error})") from error
    autoencoder = _below("pretrain.mae.", weights)
    if not autoencoder or "model" not in config:
        raise SettingError("init", name, f"a run that trains a masked autoencoder, which {config.recipe} does not")
    task = OmegaConf.select(config, "task.name", default="classification")
    record = folder / "data.json"
    data = DataRecord.read(record) if record.is_file() else _data_of(name, config, task)
    head = _below("finetune.linear.", weights)
    return InitialModel(
        name,
        RUN,
        _config_of(name, config),
        autoencoder,
        _below("mask.", weights) or None,
        Head(task, tuple(data.target_names), head) if head else None,
        torch.as_tensor(data.mean),
        torch.as_tensor(data.std),
        {
            "data.fit": config.data.fit,
            "data.tiles": config.data.get("tiles"),
            "mask.temperature": float(OmegaConf.select(config, "mask.temperature", default=1)),
        },
    )


def _verified(config: DictConfig) -> bool:
    """Whether a run's checkpoint must have digests; ``checkpoint.verify=false`` in its config.yaml says not."""
    return bool(OmegaConf.select(config, "checkpoint.verify", default=True))


def _below(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}


def _config_of(name: str, config: DictConfig) -> ViTMAEConfig:
    """The configuration of a run's autoencoder: that of the run's own ``init``, if it has one, else from its sizes."""
    origin, shape = config.get("init"), {"image_size": config.data.image_size, "channels": config.data.channels}
    if origin is None:
        sizes = {size: config.model[size] for size in SIZES}
        return MaskedAutoencoder.of_size(**shape, **sizes, mask_ratio=config.mask.ratio).mae.config
    try:
        folder = Path(origin).expanduser()
        first = _config_of(origin, read_yaml(folder / "config.yaml")) if is_run(folder) else read_config(origin)
    except MultilevelError as error:
        raise SettingError("init", name, f"a run whose own init={origin} can be read ({error})") from error
    first.image_size = config.data.image_size
    return first


def _data_of(name: str, config: DictConfig, task: str) -> ImageData:
    """A run's data, for its class names and statistics, which runs of earlier versions do not store."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(DataSettings), {"near_copies": KEEP}, config.data)
        settings: Any = OmegaConf.to_object(merged)
        return load_data(settings, allow_no_mask=True, targets=TASKS[task].targets)
    except (MultilevelError, OmegaConfBaseException, KeyError) as error:
        expected = "a run whose data are where they were, for class names and statistics, or its export"
        raise SettingError("init", name, f"{expected} ({' '.join(str(error).split())})") from error


def _read_export(name: str, folder: Path) -> InitialModel:
    if not (folder / EXPORTED).is_file() and (folder / ONNX).is_file():
        raise SettingError("init", name, "an export with format=transformers: one with format=onnx cannot be trained")
    try:
        config, processor = (parse_json((folder / file).read_text()) for file in ("config.json", PROCESSOR))
        weights = load_file(folder / EXPORTED)
        masking, mask = load_masking(folder / MASKING) if (folder / MASKING).is_file() else (None, {})
        class_names = tuple(config["id2label"][str(label)] for label in range(len(config["id2label"])))
        mean, std = (torch.tensor(processor[f"image_{key}"], dtype=torch.float32) for key in ("mean", "std"))
        fit = "crop" if processor["do_center_crop"] else "stretch"
        tiles = processor.get("tiles", {}).get("count")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        cause = " ".join(str(error).split())
        raise SettingError("init", name, f"an intact export ({type(error).__name__}: {cause})") from error
    head = None
    if "classifier.weight" in weights:
        of_patches = weights["classifier.weight"][:, config["hidden_size"] :]  # those of the class token are 0
        head = Head("classification", class_names, {"weight": of_patches, "bias": weights["classifier.bias"]})
    trained_with = {
        "data.fit": fit,
        "data.tiles": tiles,
        **({"mask.temperature": mask["temperature"]} if "temperature" in mask else {}),
    }
    return InitialModel(name, EXPORT, read_config(name), None, masking, head, mean, std, trained_with)
