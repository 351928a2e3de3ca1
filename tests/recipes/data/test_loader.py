from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time

import pytest
import torch
import torch.nn.functional as F

from multilevel.recipes.data import ImageLoader, Images, Split, load_data
from multilevel.recipes.data.augment import draw_boxes
from multilevel.recipes.data.loader import mixed_seed
from multilevel.solvers.errors import DataError, SettingError


class Numbered(Images):
    """Images of 4 x 4 whose pixels are all different; some may be broken."""

    def __init__(self, count, broken=()):
        self.channels, self.image_size = 3, 4
        self.labels = torch.arange(count) % 5
        self.everything = torch.randint(
            0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        self.broken = set(broken)
        self.asked = []

    def pixels(self, indices):
        self.asked += indices.tolist()
        if self.broken & set(indices.tolist()):
            raise DataError("image 7 cannot be read")
        return self.everything[indices]

    def prepare(self, indices):
        pass


def part_of(count=50, broken=()):
    images = Numbered(count, broken)
    return Split("finetune", images, torch.arange(count))


def normalize(images):
    return images.float() / 255 - 0.5


def loader_of(part=None, **options):
    return ImageLoader(part_of() if part is None else part, normalize, **{"batch_size": 8, **options})


def same(left, right):
    return len(left) == len(right) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(left, right, strict=True)
    )


def batch_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def wait_for_no_threads():
    end = time.monotonic() + 10
    while batch_threads() and time.monotonic() < end:
        time.sleep(0.01)
    return not batch_threads()


def test_an_epoch_is_every_image_once_with_its_label():
    part = part_of()
    loader = loader_of(part, drop_last=False)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [8] * 6 + [2]
    assert len(loader) == 7
    assert loader.images_per_epoch == 50
    known = {tuple(normalize(part.images.everything[row]).flatten().tolist()): row for row in range(50)}
    rows = []
    for images, labels in batches:
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        found = [known[tuple(image.flatten().tolist())] for image in images]
        assert labels.tolist() == [row % 5 for row in found]
        rows += found
    assert sorted(rows) == list(range(50))
    assert rows != list(range(50))


def test_last_images_that_fill_no_batch_are_left_out():
    loader = loader_of()
    assert len(loader) == len(list(loader)) == 6
    assert loader.images_per_epoch == 48


def test_two_epochs_differ_and_the_global_seed_repeats_them():
    loader = loader_of(flip=True, crop_scale=0.5)
    torch.manual_seed(3)
    first, second = list(loader), list(loader)
    assert not same(first, second)
    torch.manual_seed(3)
    assert same(list(loader), first)


def test_iter_draws_a_permutation_and_a_seed_and_nothing_after():
    loader = loader_of(flip=True, crop_scale=0.5)
    torch.manual_seed(3)
    order = torch.randperm(50)
    seed = int(torch.randint(2**62, ()))
    after = torch.get_rng_state()
    torch.manual_seed(3)
    batches = iter(loader)
    assert torch.equal(torch.get_rng_state(), after)
    got = list(batches)
    assert torch.equal(torch.get_rng_state(), after)
    assert same(got, [loader.batch(order, seed, number) for number in range(6)])


def test_the_same_draws_with_and_without_augmentation():
    states = []
    for options in ({}, {"flip": True}, {"crop_scale": 0.5}):
        torch.manual_seed(3)
        iter(loader_of(**options))
        states.append(torch.get_rng_state())
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def test_an_epoch_in_order_without_augmentation_draws_nothing():
    part = part_of()
    before = torch.get_rng_state()
    batches = list(loader_of(part, shuffle=False, drop_last=False))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.cat([images for images, _ in batches]), normalize(part.images.everything))


@pytest.mark.parametrize("start", [0, 1, 4, 6])
def test_resumed_epoch_equals_the_rest_of_the_whole_one(start):
    options = {"flip": True, "crop_scale": 0.3}
    torch.manual_seed(11)
    whole = list(loader_of(**options))
    expected_state = torch.get_rng_state()
    part = part_of()
    torch.manual_seed(11)
    rest = list(loader_of(part, **options).iterate_from(start))
    assert same(rest, whole[start:])
    assert torch.equal(torch.get_rng_state(), expected_state)
    assert len(part.images.asked) == 8 * (6 - start)  # the skipped ones were not read


@pytest.mark.parametrize("start", [-1, 7])
def test_start_outside_the_epoch(start):
    with pytest.raises(ValueError, match=f"got {start}; an epoch has 6 batches"):
        loader_of().iterate_from(start)


def test_batches_are_cropped_and_mirrored_before_they_are_normalised():
    part = part_of(8)
    torch.manual_seed(0)
    order, seed = torch.randperm(8), int(torch.randint(2**62, ()))
    torch.manual_seed(0)
    ((images, _),) = list(loader_of(part, flip=True, crop_scale=0.4))
    generator = torch.Generator().manual_seed(mixed_seed(seed, 0))
    boxes = draw_boxes(8, 4, 0.4, generator)
    mirrored = torch.rand(8, generator=generator) < 0.5
    for place, row in enumerate(order.tolist()):
        top, left, height, width = boxes[place].tolist()
        # a truth of its own: read bilinearly, pixel by pixel, at points clamped to the box
        source = part.images.everything[row].float()
        expected = torch.empty(3, 4, 4)
        for y in range(4):
            for x in range(4):
                at_y = min(max(top + (y + 0.5) * height / 4, top + 0.5), top + height - 0.5) - 0.5
                at_x = min(max(left + (x + 0.5) * width / 4, left + 0.5), left + width - 0.5) - 0.5
                low_y, low_x = int(at_y), int(at_x)
                high_y, high_x = min(low_y + 1, 3), min(low_x + 1, 3)
                up, across = at_y - low_y, at_x - low_x
                expected[:, y, x] = (1 - up) * (
                    (1 - across) * source[:, low_y, low_x] + across * source[:, low_y, high_x]
                ) + up * ((1 - across) * source[:, high_y, low_x] + across * source[:, high_y, high_x])
        if mirrored[place]:
            expected = expected.flip(-1)
        torch.testing.assert_close(images[place], normalize(expected), atol=1e-4, rtol=0)


def test_mixed_seeds_are_all_different():
    assert len({mixed_seed(seed, number) for seed in range(50) for number in range(50)}) == 2500


def test_batches_are_prepared_ahead_but_not_the_whole_epoch():
    part = part_of(80)
    batches = iter(loader_of(part))
    end = time.monotonic() + 10
    while len(part.images.asked) < 16 and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(part.images.asked) == 16
    next(batches)
    del batches


def test_an_error_reaches_the_consumer_and_ends_the_epoch():
    batches = iter(loader_of(part_of(broken=[7]), shuffle=False))
    with pytest.raises(DataError, match="image 7"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)
    assert wait_for_no_threads()


def test_no_thread_is_left_after_an_epoch_or_a_dropped_one():
    assert wait_for_no_threads()
    list(loader_of())
    assert wait_for_no_threads()
    batches = iter(loader_of())
    next(batches)
    assert batch_threads()
    del batches
    assert wait_for_no_threads()
    cycle = [iter(loader_of())]
    cycle.append(cycle)
    assert batch_threads()
    del cycle
    gc.collect()
    assert wait_for_no_threads()


def test_global_generator_of_the_thread_is_not_touched_by_decoding(parquet, settings):
    data = load_data(settings(path=str(parquet("train", [0, 1, 2] * 20)), memory_gib=0.0))
    loader = ImageLoader(data.pretrain, data.normalize, 8, flip=True, crop_scale=0.5)
    batches = iter(loader)
    state = torch.get_rng_state()
    images, labels = next(batches)
    list(batches)
    assert torch.equal(torch.get_rng_state(), state)
    assert images.shape == (8, 3, 8, 8)
    assert labels.shape == (8,)


def test_the_process_exits_with_an_epoch_half_read():
    """Of images that are held in memory, and of images that are read one by one."""
    script = """
from multilevel.recipes.data import DataSettings, ImageLoader, load_data
epochs = []
for memory_gib in (4.0, 0.0):
    settings = DataSettings(
        name="digits", image_size=8, channels=1, patch_size=2, batch_size=4, memory_gib=memory_gib
    )
    data = load_data(settings)
    epochs.append(iter(ImageLoader(data.pretrain, data.normalize, 4, True, 0.5)))
    next(epochs[-1])
print("read")
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "read\n", "")


def test_fewer_images_than_a_batch():
    with pytest.raises(DataError, match=r"'finetune' has 5 images, fewer than data\.batch_size=8"):
        loader_of(part_of(5))
    assert len(list(loader_of(part_of(5), drop_last=False))) == 1
    with pytest.raises(DataError, match="'finetune' has 0 images"):
        loader_of(part_of(0), drop_last=False)


def test_crop_of_a_constant_image_is_constant():
    part = part_of(8)
    part.images.everything[:] = 128
    ((images, _),) = list(loader_of(part, crop_scale=0.2))
    torch.testing.assert_close(images, F.pad(normalize(torch.full((8, 3, 4, 4), 128)), (0, 0)))


def test_shares_of_batches_are_the_batches_and_the_rest_is_not_read():
    torch.manual_seed(0)
    whole = list(loader_of(flip=True, crop_scale=0.5))
    shares, asked = [], []
    for rank in range(4):
        torch.manual_seed(0)
        part = part_of()
        shares.append(list(loader_of(part, flip=True, crop_scale=0.5).batch_share(rank, 4)))
        asked += part.images.asked
    joined = [tuple(torch.cat(parts) for parts in zip(*some, strict=True)) for some in zip(*shares, strict=True)]
    assert same(joined, whole)
    assert len(asked) == len(set(asked)) == 48


def test_ranks_that_cannot_share_a_batch_evenly():
    with pytest.raises(SettingError, match=r"data\.batch_size: got 8; expected a multiple of the number of ranks, 3"):
        loader_of().batch_share(0, 3)
