"""Pictures: readable PNGs, written whole or not at all; reconstructions in the images' own scale."""

import numpy as np
import pytest
import torch
from PIL import Image
from toy import toy_graph

from multilevel.commands.graph_picture import draw_graph
from multilevel.levels import MaskedAutoencoder
from multilevel.recipes.pictures import reconstruct_pixels
from multilevel.runs.curves import draw_curves, moving_mean
from multilevel.solvers import FiniteDifference


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def records(loss):
    return [
        {"level": level, "step": step, "loss": loss(step), "metrics": {"accuracy": 0.5} if level == "b" else {}}
        for step in range(40)
        for level in ("a", "a", "b")
    ]


def test_curves_fit_a_screen_and_show_the_losses(tmp_path):
    draw_curves(tmp_path / "down.png", records(lambda step: 1 / (1 + step)))
    draw_curves(tmp_path / "up.png", records(lambda step: step))
    down, up = pixels(tmp_path / "down.png"), pixels(tmp_path / "up.png")
    assert down.shape[1] == 1260  # two columns, which fit a screen
    assert (down != up).any()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_themoving_mean_goes_on_after_a_value_that_is_missing():
    values = np.arange(100.0)
    values[40] = np.nan
    mean = moving_mean(values)
    kept = [np.nanmean(values[max(0, index - 2) : index + 3]) for index in range(100)]  # 5% of 100, to either side
    np.testing.assert_allclose(mean, kept)


def test_metrics_may_be_missing_and_losses_null(tmp_path):
    some = records(float)
    some[0] |= {"loss": None, "metrics": {"rare": 1.0}}
    draw_curves(tmp_path / "curves.png", some)
    draw_curves(tmp_path / "none.png", [])
    assert {path.name for path in tmp_path.iterdir()} == {"curves.png", "none.png"}


def test_a_failed_drawing_leaves_nothing(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    path = tmp_path / "curves.png"
    path.write_bytes(b"before")

    def fail(self, target, **keywords):
        target.write(b"half")
        raise RuntimeError

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(RuntimeError):
        draw_curves(path, records(float))
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reconstruction_is_in_the_scale_of_the_images():
    torch.manual_seed(0)
    model = MaskedAutoencoder.of_size(
        image_size=8, channels=3, patch_size=4, width=8, depth=1, heads=2,
        decoder_width=8, decoder_depth=1, decoder_heads=2, mask_ratio=0.5,
    )  # fmt: skip
    true = torch.rand(4, 3, 8, 8)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.1])
    normalized = (true - mean[:, None, None]) / std[:, None, None]
    scores = torch.rand(4, 4)
    hidden, pictures = reconstruct_pixels(model, normalized, scores, mean, std)
    assert hidden.sum(1).tolist() == [2.0] * 4
    spread = hidden.view(4, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3).expand_as(true) > 0
    torch.testing.assert_close(pictures[~spread], true[~spread], rtol=0, atol=1e-5)
    assert not torch.allclose(pictures[spread], true[spread], atol=0.01)
    # A model that predicts its own targets gives the image back.
    model.reconstruct = lambda images, order: (model.targets(images), hidden)
    torch.testing.assert_close(reconstruct_pixels(model, normalized, scores, mean, std)[1], true, rtol=0, atol=1e-4)


@pytest.mark.parametrize("count", [2, 6])
def test_a_graph_of_any_size(tmp_path, count):
    names = [f"level_{index}" for index in range(count)]
    functions = {
        name: lambda v, own=name, above=names[index + 1 :]: (
            v[own].square().sum() + sum((v[own] * v[o]).sum() for o in above)
        )
        for index, name in enumerate(names)
    }
    functions[names[-1]] = lambda v: sum(v[name].square().sum() for name in names)
    values = dict.fromkeys(names, torch.ones(2))
    draw_graph(tmp_path / "graph.png", toy_graph(functions, values, dict.fromkeys(names, FiniteDifference())))
    found = pixels(tmp_path / "graph.png")
    assert found.shape[0] > 150 * count
    coloured = (found.max(2) - found.min(2)) > 100
    assert coloured.mean() > 0.001  # arrows
    edge = np.concatenate([coloured[:, :8], coloured[:, -8:]], axis=1)
    assert not edge.any()  # none of them leaves the picture
