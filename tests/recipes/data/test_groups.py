"""Images that belong together stay in one part of the division: near copies, equal files, and groups by a setting."""

import numpy as np
import pytest
import torch
from PIL import Image

from multilevel.recipes.data import load_data
from multilevel.recipes.data.groups import large_groups
from multilevel.recipes.data.strata import cut_groups
from multilevel.solvers import DataError, SettingError

PARTS = ("finetune", "mask", "validation", "test")


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8)).save(path)


@pytest.fixture
def photographs(tmp_path):
    """60 parts of two classes, each photographed three times: the same picture, a bit brighter, with a bit of noise."""
    random = np.random.default_rng(0)
    for part in range(60):
        surface = random.normal(128, 40, (32, 32))
        for shot in range(3):
            name = f"{('good', 'worn')[part % 2]}/lot{part // 10}/part{part:02d}-{shot}.png"
            write(tmp_path / "images" / name, surface + 5 * shot + random.normal(0, 4, (32, 32)))
    return tmp_path / "images"


def part_numbers(data, part):
    names = [data.pretrain.images.source.names[row] for row in getattr(data, part).indices.tolist()]
    return [name.split("/")[-1].split("-")[0] for name in names]


def test_near_copies_stay_in_one_part(photographs, settings):
    data = load_data(settings(path=str(photographs), validation_share=0.2))
    numbers = [set(part_numbers(data, part)) for part in PARTS]
    assert sum(map(len, numbers)) == len(set.union(*numbers)) == 60
    assert [len(getattr(data, part)) for part in PARTS] == [96, 24, 24, 36]  # 0.2 of what is left, in whole groups
    assert "180 images in 60 groups of near copies (correlation above 0.95)" in data.notes[0]
    for part in PARTS:  # both classes in proportion
        counts = getattr(data, part).labels.bincount()
        assert abs(int(counts[0] - counts[1])) <= 3


def test_keep_divides_image_by_image(photographs, settings):
    data = load_data(settings(path=str(photographs), near_copies="keep"))
    assert set(part_numbers(data, "finetune")) & set(part_numbers(data, "test"))
    assert data.notes == ()


def test_groups_of_near_copies_agree_with_written_out_correlations(photographs, settings):
    data = load_data(settings(path=str(photographs), near_copies=0.97))
    source = data.pretrain.images.source
    pixels = np.stack([np.asarray(Image.open(file), dtype=np.float64).ravel() for file in source.files])
    near = np.corrcoef(pixels) > 0.97
    expected = (np.linalg.matrix_power(near.astype(float), 12) > 0).argmax(1)  # the first image within 12 steps
    for image, first in enumerate(expected):
        assert source.groups[image] == source.groups[first]
    assert len(set(source.groups.tolist())) == len(set(expected.tolist())) > 1


@pytest.mark.parametrize(
    ("group", "count"), [(r"part(\d+)", 60), ("folder", 6), (r"lot\d", 6), (r"lot(\d)/part\d\d-(\d)", 6)]
)
def test_a_setting_names_groups(photographs, settings, group, count):
    data = load_data(settings(path=str(photographs), group=group, near_copies="keep"))
    assert len(data.pretrain.images.groups.unique()) == count


def test_a_column_of_a_table_names_groups(parquet, settings):
    import datasets

    lots = [f"lot {row // 4}" for row in range(40)]
    root = parquet("train", [row % 2 for row in range(40)], extra={"lot": (datasets.Value("string"), lots)})
    data = load_data(settings(path=str(root), group="lot", near_copies="keep", mask_share=0.3))
    by_part = [{lots[row] for row in getattr(data, part).indices.tolist()} for part in ("finetune", "mask", "test")]
    assert sum(map(len, by_part)) == len(set.union(*by_part)) == 10
    with pytest.raises(
        SettingError, match=r"data\.group: got 'batch'; expected a column of the table: lot, image, label"
    ):
        load_data(settings(path=str(root), group="batch"))


@pytest.mark.parametrize(
    ("group", "expected"),
    [("(", "folder, or a regular expression"), ("serial", "matches names like good/lot0/part00-0.png")],
)
def test_unusable_patterns_are_refused(photographs, settings, group, expected):
    with pytest.raises(SettingError, match=expected):
        load_data(settings(path=str(photographs), group=group))


def test_copies_in_a_given_test_split_are_counted_and_not_moved(photographs, settings):
    files = sorted(photographs.rglob("*-0.png"))
    for file in sorted(photographs.rglob("*.png")):
        split = "test" if file in files[:10] else "train"
        target = photographs.parent / "split" / split / file.parts[-3] / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    data = load_data(settings(path=str(photographs.parent / "split")))
    assert len(data.test) == 10
    assert data.notes[0].startswith("10 of 10 test images are copies or near copies (correlation above 0.95)")


def test_constant_images_are_copies_only_if_their_files_are_equal(tmp_path, settings):
    for number in range(16):
        write(
            tmp_path / "images" / ("dark", "light")[number % 2] / f"{number}.png", np.full((8, 8), 10.0 * (number // 4))
        )
    groups = load_data(settings(path=str(tmp_path / "images"))).pretrain.images.groups
    assert groups.bincount().tolist() == [4, 4, 4, 4]


def test_a_group_above_five_percent_of_a_class_is_reported_and_not_kept_together(tmp_path, settings):
    random = np.random.default_rng(1)
    common = random.normal(128, 40, (32, 32))
    for number in range(100):
        surface = common if number < 22 else random.normal(128, 40, (32, 32))
        write(
            tmp_path / "images" / ("good", "worn")[number % 2] / f"{number:03d}.png",
            surface + random.normal(0, 4, (32, 32)),
        )
    data = load_data(settings(path=str(tmp_path / "images")))
    assert len(data.pretrain.images.groups.unique()) == 100
    assert "1 groups of 22 images are above 5% of a class and not kept together" in data.notes[1]


def test_large_groups_are_measured_within_a_class():
    groups = np.repeat(np.arange(3), (30, 11, 9))
    labels = np.repeat([0, 1, 1], (30, 11, 9))
    groups, labels = np.append(groups, np.arange(3, 803)), np.append(labels, np.zeros(800, dtype=int))
    assert large_groups(groups, labels).nonzero()[0].tolist() == [1]  # 30 of 830, 11 of 20 and 9 of 20 images


def test_cutting_groups_keeps_enough_of_every_class():
    labels = np.array([0] * 40 + [1] * 6 + [2] * 3)
    groups = np.array([row // 2 for row in range(40)] + [20, 20, 20, 21, 21, 21] + [22, 22, 23])
    for seed in range(20):
        stay, cut = cut_groups(labels, np.arange(49), 0.2, 1, np.random.default_rng(seed), groups)
        assert not set(groups[stay]) & set(groups[cut])
        assert sorted([*stay, *cut]) == list(range(49))
        assert (np.bincount(labels[cut]) == [8, 3, 1]).all()


def test_unlabelled_copies_of_test_images_are_not_trained_on(photographs, settings):
    for file in sorted(photographs.rglob("*-2.png")):
        target = photographs / "unlabelled" / file.name
        target.parent.mkdir(exist_ok=True)
        file.rename(target)
    data = load_data(settings(path=str(photographs)))
    assert len(data.pretrain) - len(data.finetune) == 60 - len(data.test) // 2
    groups = data.pretrain.images.groups
    assert not torch.isin(groups[data.pretrain.indices], groups[data.test.indices]).any()


def test_all_unreadable_images_are_named_at_once(photographs, settings):
    files = sorted(photographs.rglob("*.png"))
    for file in files[3:10]:
        file.write_bytes(b"no image")
    message = rf"7 images: .*{files[3].name} cannot be read.*{files[7].name} cannot be read[^;]*;[^;]*; and 2 more$"
    with pytest.raises(DataError, match=message):
        load_data(settings(path=str(photographs)))


def test_unreadable_images_of_a_given_test_split_are_named_and_stop_nothing(photographs, settings):
    (photographs / "test").mkdir()
    for name in ("good", "worn"):
        (photographs / "train").mkdir(exist_ok=True)
        (photographs / "test" / name).mkdir()
        (photographs / name / "lot0").rename(photographs / "test" / name / "lot0")
        (photographs / name).rename(photographs / "train" / name)
    broken = sorted((photographs / "test").rglob("*.png"))[4]
    broken.write_bytes(b"no image")
    notes = load_data(settings(path=str(photographs))).notes
    assert notes[0].startswith("1 of 30 test images cannot be read, so they cannot be scored: ")
    assert str(broken) in notes[0]
