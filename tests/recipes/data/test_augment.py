from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from multilevel.recipes.data.augment import crop, draw_boxes, draw_geometry, mirror


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def augment(images, flip, crop_scale, generator):
    """Images uint8 [B, C, S, S] after what ``draw_geometry`` draws for them."""
    return draw_geometry(len(images), images.shape[-1], flip, crop_scale, generator).images(images)


@pytest.fixture
def images():
    return torch.randint(0, 256, (6, 3, 12, 12), dtype=torch.uint8, generator=seeded())


def test_crop_of_whole_pixels_is_the_cut_resized(images):
    boxes = torch.tensor(
        [[0, 0, 12, 12], [2, 3, 6, 6], [0, 5, 8, 7], [4, 0, 8, 12], [7, 7, 5, 5], [1, 2, 3, 9]],
        dtype=torch.float32,
    )
    cropped = crop(images.float(), boxes)
    for image, box, got in zip(images, boxes.int().tolist(), cropped, strict=True):
        top, left, height, width = box
        cut = image[None, :, top : top + height, left : left + width].float()
        expected = F.interpolate(cut, (12, 12), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(got, expected, atol=1e-2, rtol=0)


def test_whole_image_as_box_changes_nothing(images):
    boxes = torch.tensor([[0.0, 0.0, 12.0, 12.0]]).expand(6, 4)
    torch.testing.assert_close(crop(images.float(), boxes), images.float(), atol=1e-3, rtol=0)


def test_mirror_turns_the_chosen_images_only(images):
    mirrored = torch.tensor([True, False, True, False, False, True])
    got = mirror(images, mirrored)
    assert torch.equal(got[mirrored], torch.flip(images[mirrored], [-1]))
    assert torch.equal(got[~mirrored], images[~mirrored])


def test_boxes_lie_inside_with_the_areas_and_shapes_asked_for():
    boxes = draw_boxes(20_000, 32, 0.3, seeded())
    top, left, height, width = boxes.unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 32 + 1e-4).all()
    assert (left + width <= 32 + 1e-4).all()
    area, shape = height * width / 32**2, width / height
    assert area.min() >= 0.3 - 1e-5
    assert area.min() < 0.31
    assert area.max() > 0.95
    assert shape.min() >= 0.75 - 1e-5
    assert shape.max() <= 4 / 3 + 1e-5
    assert shape.min() < 0.76
    assert shape.max() > 1.31
    assert abs(shape.log().mean()) < 0.01  # as often wide as high
    free = 32 - height > 1
    assert abs((top[free] / (32 - height[free])).mean() - 0.5) < 0.02
    assert abs(torch.corrcoef(torch.stack([top[free] / (32 - height[free]), left[free] / 32]))[0, 1]) < 0.1


def test_half_of_the_images_are_mirrored():
    images = torch.zeros(4000, 1, 1, 2, dtype=torch.uint8)
    images[..., 0] = 1
    share = augment(images, True, 1.0, seeded())[:, 0, 0, 1].float().mean()
    assert 0.46 < share < 0.54


def test_without_augmentation_images_pass_untouched(images):
    assert torch.equal(augment(images, False, 1.0, seeded()), images)


def test_draws_come_from_the_generator_alone(images):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = augment(images, True, 0.4, seeded(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, augment(images, True, 0.4, seeded(1)))
    assert not torch.equal(first, augment(images, True, 0.4, seeded(2)))
    assert first.dtype == torch.float32
    assert first.min() >= 0
    assert first.max() <= 255


def moved(flip, crop_scale, count=40, size=24):
    """Images of a white rectangle, their masks and boxes, all after the same geometry."""
    corners = torch.randint(0, size - 5, (count, 2), generator=seeded(7))
    sides = torch.randint(4, 12, (count, 2), generator=seeded(8))
    ends = (corners + sides).clamp(max=size)
    boxes = torch.full((count, 3, 5), -1.0)
    boxes[:, 0] = torch.cat([corners.flip(1), ends.flip(1), torch.ones(count, 1)], dim=1)
    masks = torch.zeros(count, 1, size, size, dtype=torch.uint8)
    for mask, (top, left), (bottom, right) in zip(masks[:, 0], corners.tolist(), ends.tolist(), strict=True):
        mask[top:bottom, left:right] = 255
    drawn = draw_geometry(count, size, flip, crop_scale, seeded(9))
    return drawn, drawn.images(masks)[:, 0].float(), drawn.masks(masks)[:, 0], drawn.boxes(boxes, size), boxes


@pytest.mark.parametrize(("flip", "crop_scale"), [(True, 1.0), (False, 0.3), (True, 0.3)])
def test_masks_move_with_their_images(flip, crop_scale):
    _, images, masks, _, _ = moved(flip, crop_scale)
    assert masks.dtype == torch.uint8
    assert set(masks.unique().tolist()) == {0, 255}
    unmixed = (images < 1) | (images > 254)  # between, bilinear interpolation mixes two pixels
    assert unmixed.float().mean() > 0.85
    assert torch.equal(masks[unmixed] > 127, images[unmixed] > 127)


@pytest.mark.parametrize(("flip", "crop_scale"), [(True, 1.0), (False, 0.3), (True, 0.3)])
def test_boxes_stay_around_what_they_were_drawn_around(flip, crop_scale):
    drawn, _, masks, boxes, before = moved(flip, crop_scale)
    assert (boxes[:, 1:] == -1).all()
    kept = lost = 0
    for number, (mask, (left, top, right, bottom, kind)) in enumerate(zip(masks, boxes[:, 0].tolist(), strict=True)):
        rows, columns = torch.nonzero(mask, as_tuple=True)
        if kind == 1:
            kept += 1
            found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            torch.testing.assert_close(
                torch.tensor([left, top, right, bottom]), torch.stack(found).float(), atol=1, rtol=0
            )
            continue
        lost += 1
        assert (left, top, right, bottom, kind) == (-1, -1, -1, -1, -1)
        up, across, height, width = drawn.crops[number].tolist()
        x0, y0, x1, y1 = before[number, 0, :4].tolist()
        seen_width = max(min(x1, across + width) - max(x0, across), 0)
        seen_height = max(min(y1, up + height) - max(y0, up), 0)
        middle = across <= (x0 + x1) / 2 < across + width and up <= (y0 + y1) / 2 < up + height
        assert not middle or seen_width * seen_height < 0.25 * (x1 - x0) * (y1 - y0)
    assert kept > 20
    assert (lost > 2) == (crop_scale < 1)


def test_geometry_draws_what_augment_draws(images):
    drawn = draw_geometry(6, 12, True, 0.4, seeded(1))
    assert torch.equal(drawn.images(images), augment(images, True, 0.4, seeded(1)))
    untouched = draw_geometry(6, 12, False, 1.0, seeded(1))
    assert untouched.crops is None
    assert untouched.mirrored is None
