"""Measures how often multilevel monitor raises an alarm on images of unchanged and of changed optics.

Divides a folder of images by class into training and new images, by connected near copies, so that no part is on both
sides. Trains a short run on the training images and exports it. Each row changes the new images, saves them in the
format, size and quality of their files, and draws 200 reports of 100 images, by whole groups of near copies; their
features and optics are computed once. Prints in how many reports each test of monitor, corrected for the number of
tests, sees a change, and in how many any does, which is the alarm.

    python benchmarks/monitor_power.py data.path=DIR data.channels=1
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from tqdm import tqdm

from multilevel.__main__ import main as multilevel
from multilevel.recipes.data.pictures import to_pixels
from multilevel.recipes.data.sources.listing import images_below
from multilevel.recipes.export import DriftReference, ExportedModel
from multilevel.recipes.export.drift import Sample, choose_groups, run_tests
from multilevel.recipes.export.optics import MEASURES, Optics, near_copies, noise
from multilevel.recipes.export.two_sample import draw_memberships

RUN = ("data=folder", "steps=60", "evaluate=false")
TRAINING = 0.6  # share of the groups
BATCH = 64
NAMES = ("features", *MEASURES)

Change = Callable[[Image.Image], Image.Image]


def blurred(sigma: float) -> Change:
    return lambda picture: picture.filter(ImageFilter.GaussianBlur(sigma))


def rescaled(factor: int) -> Change:
    """Down by a factor and up again, at unchanged size."""

    def change(picture: Image.Image) -> Image.Image:
        small = picture.resize([max(1, round(side / factor)) for side in picture.size], Image.Resampling.BICUBIC)
        return small.resize(picture.size, Image.Resampling.BICUBIC)

    return change


def out_of_focus(sigma: float) -> Change:
    """Blurred by the lens, before a sensor adds the noise that the picture had."""

    def change(picture: Image.Image) -> Image.Image:
        level = noise(np.asarray(picture.convert("L"), np.float32))
        values = np.asarray(picture.filter(ImageFilter.GaussianBlur(sigma)), np.float64)
        noisy = values + np.random.default_rng(0).normal(0, level, values.shape)
        return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))

    return change


CHANGES: dict[str, Change | None] = {
    "unchanged": None,
    "unchanged, saved again": lambda picture: picture,
    "blur of 1 pixel": blurred(1),
    "blur of 3 pixels": blurred(3),
    "half resolution": rescaled(2),
    "quarter resolution": rescaled(4),
    "blur of 1 pixel below the same noise": out_of_focus(1),
    "exposure of 0.8": lambda picture: picture.point(lambda value: round(0.8 * value)),
}


def saved(picture: Image.Image, change: Change | None) -> Image.Image:
    """The changed picture, after it was saved in its file's format and quality."""
    if change is None:
        return picture
    file = io.BytesIO()
    quality = {"qtables": picture.quantization} if picture.format == "JPEG" else {}  # type: ignore[attr-defined]
    change(picture).save(file, picture.format, **quality)
    return Image.open(file)


def divided(root: Path, folder: Path, seed: int) -> tuple[list[Path], np.ndarray]:
    """Copy the training images into a folder; returns the new images and their groups, int64 [N]."""
    files = images_below(root)
    groups = near_copies(np.concatenate([Optics.of(Image.open(file)).thumbnails for file in files]))
    order = np.random.default_rng(seed).permutation(groups.max() + 1)
    training = np.isin(groups, order[: round(TRAINING * len(order))])
    for file, of_training in zip(files, training, strict=True):
        if of_training:
            target = folder / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    return [file for file, of_training in zip(files, training, strict=True) if not of_training], groups[~training]


def measured(files: list[Path], change: Change | None, model: ExportedModel) -> Sample:
    """Features and optics of changed images."""
    pixels, optics = [], []
    for file in tqdm(files, desc="images", leave=False, disable=None):
        with Image.open(file) as opened:
            picture = saved(opened, change)
            pixels.append(to_pixels(picture, model.image_size, model.channels, model.fit))
            optics.append(Optics.of(picture))
    features = [model(np.stack(pixels[start : start + BATCH]))[1] for start in range(0, len(pixels), BATCH)]
    joined = Optics.joined(optics)
    return Sample(np.concatenate(features), joined.measures, thumbnails=joined.thumbnails)


def drawn(groups: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Rows of whole groups in random order, of which the last may be cut."""
    order = random.permutation(np.unique(groups))
    return np.concatenate([np.flatnonzero(groups == group) for group in order])[:count]


def alarms(reference: Sample, new: Sample, groups: np.ndarray, count: int, reports: int) -> np.ndarray:
    """In how many reports each test sees a change, and any does: int64 [tests + 1]."""
    changed = np.zeros((reports, len(NAMES) + 1), bool)
    for report in tqdm(range(reports), desc="reports", leave=False, disable=None):
        random = np.random.default_rng(report)
        sample = new.rows(drawn(groups, count, random))
        members = draw_memberships(*choose_groups(reference, sample)[0], random)
        changed[report, :-1] = [test.changed for test in run_tests(reference, sample, members)]
    changed[:, -1] = changed.any(1)
    return changed.sum(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100, help="images in a report")
    parser.add_argument("--reports", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the division into training and new images")
    parser.add_argument("settings", nargs="+", help="data.path=DIR, and other settings of multilevel train")
    arguments = parser.parse_args()
    root = next(Path(text.partition("=")[2]) for text in arguments.settings if text.startswith("data.path="))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        files, groups = divided(root, work / "training", arguments.seed)
        settings = [text for text in arguments.settings if not text.startswith("data.path=")]
        run = [*RUN, *settings, f"data.path={work / 'training'}", f"output={work / 'run'}"]
        assert multilevel(["train", *run]) == 0
        assert multilevel(["export", str(work / "run")]) == 0
        reference = DriftReference.load(work / "run" / "export").sample
        model = ExportedModel(work / "run" / "export", torch.device("cpu"))
        assert reference.groups is not None
        print(f"\n{len(reference)} training images in {len(np.unique(reference.groups))} groups; reports of")
        print(f"{arguments.images} of {len(files)} new images in {len(np.unique(groups))} groups\n")
        print(f"| images | alarms in {arguments.reports} reports | {' | '.join(NAMES)} |")
        print(f"|---|---|{'---|' * len(NAMES)}")
        for name, change in CHANGES.items():
            new = measured(files, change, model)
            *tests, any_test = alarms(reference, new, groups, arguments.images, arguments.reports)
            print(f"| {name} | {any_test} | {' | '.join(map(str, tests))} |", flush=True)


if __name__ == "__main__":
    main()
