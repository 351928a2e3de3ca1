"""Generated surfaces: the same everywhere, divided as documented, and too hard for a linear model of pixels."""

from hashlib import sha256

import numpy as np
import pytest
import torch
from scipy.ndimage import laplace
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from multilevel.commands.surfaces import main
from multilevel.configuration.composition import compose_config
from multilevel.recipes.data import DataSettings, load_data
from multilevel.recipes.data.sources.surfaces import (
    CLASSES,
    PHOTOGRAPHS,
    TEST_PARTS,
    TRAIN_PARTS,
    SurfacesSource,
    read_surfaces,
    write_surfaces,
)
from multilevel.solvers import SettingError


def pictures(source):
    return np.stack([np.asarray(source.open(row)) for row in range(len(source))])


@pytest.fixture(scope="module")
def splits():
    return read_surfaces()


@pytest.fixture(scope="module")
def arrays(splits):
    """Pixels [N, 32, 32] and labels of the training and the test photographs."""
    return [(pictures(part), part.labels.numpy()) for part in (splits.train, splits.test)]


def test_photographs_depend_on_their_seed_alone():
    """The bytes as they were first generated; order and neighbours of the rows have no effect."""
    first = pictures(SurfacesSource(40, seed=5))
    assert np.array_equal(first, pictures(SurfacesSource(40, seed=5)))
    assert np.array_equal(SurfacesSource(40, seed=5)._take(np.array([7])), first[7:8])
    other = pictures(SurfacesSource(40, seed=6))
    assert all((first[row] != other[row]).mean() > 0.8 for row in range(len(first)))
    assert sha256(first.tobytes()).hexdigest().startswith("732caaa04483035f")


def test_one_part_in_ten_has_a_defect_and_each_kind_is_equally_frequent(splits):
    for part, count in ((splits.train, TRAIN_PARTS), (splits.test, TEST_PARTS)):
        shares = np.bincount(part.labels, minlength=5) / len(part)
        assert len(part) == count * PHOTOGRAPHS
        assert shares[0] == 0.9
        assert shares[1:] == pytest.approx(0.025, abs=1 / count)
    assert splits.class_names == CLASSES == ("good", "scratch", "dent", "stain", "crack")


def test_photographs_of_a_part_are_a_group_with_one_label(splits):
    groups, labels = splits.train.groups, splits.train.labels
    assert groups.dtype == torch.int64
    assert torch.equal(groups.bincount(), torch.full((TRAIN_PARTS,), PHOTOGRAPHS))
    assert torch.equal(labels.view(-1, PHOTOGRAPHS), labels.view(-1, PHOTOGRAPHS)[:, :1].expand(-1, PHOTOGRAPHS))


def test_photographs_of_a_part_resemble_each_other_more_than_those_of_other_parts(arrays):
    """By their spectra, which show the texture whatever the position and the light."""
    train, _ = arrays[0]
    spectra = np.log1p(np.abs(np.fft.rfft2(train[:800])).reshape(800, -1))
    correlation = np.corrcoef(spectra)
    same = np.arange(800) // PHOTOGRAPHS == (np.arange(800) // PHOTOGRAPHS)[:, None]
    distinct = same & ~np.eye(800, dtype=bool)
    assert np.median(correlation[distinct]) > np.quantile(correlation[~same], 0.9)


def test_no_two_photographs_are_equal_and_training_and_test_share_none(arrays):
    both = np.concatenate([pixels for pixels, _ in arrays]).reshape(-1, 32 * 32)
    assert len(np.unique(both, axis=0)) == len(both)


def test_a_linear_model_of_the_pixels_finds_no_defects(arrays):
    """Area under the ROC curve; 200 defective photographs of 50 parts: its standard error is 0.04 at chance."""
    (train, labels), (test, truth) = arrays
    for strength in (1e-4, 1e-2):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300, class_weight="balanced"))
        model.fit(train.reshape(len(train), -1), labels > 0)
        scores = model.decision_function(test.reshape(len(test), -1))
        assert 0.4 < roc_auc_score(truth > 0, scores) < 0.6
        assert 0.4 < balanced_accuracy_score(truth > 0, scores > 0) < 0.6


def test_contrasts_find_defects(arrays):
    """The task can be solved: eighteen statistics of local contrast and boosted trees find most defects."""
    (train, labels), (test, truth) = arrays

    def statistics(pixels):
        pixels = pixels / pixels.mean((1, 2), keepdims=True)
        blocks = pixels.reshape(-1, 8, 4, 8, 4)
        edges = [np.abs(laplace(pixels, axes=(1, 2))), np.abs(np.diff(pixels, axis=1)), np.abs(np.diff(pixels, axis=2))]
        values = [value.reshape(len(pixels), -1) for value in (*edges, blocks.mean((2, 4)), blocks.std((2, 4)))]
        return np.concatenate([np.quantile(value, (0, 0.5, 0.99, 1), axis=1) for value in values]).T

    model = HistGradientBoostingClassifier(class_weight="balanced", random_state=0).fit(statistics(train), labels > 0)
    assert roc_auc_score(truth > 0, model.predict_proba(statistics(test))[:, 1]) > 0.75


def defect_alone(source):
    """What the defects change: int64 [N, size, size] of the N photographs of defective parts."""
    rows = np.flatnonzero(source.labels)
    with_defects = source._take(rows).astype(int)
    source.labels = torch.zeros_like(source.labels)
    return with_defects - source._take(rows)


def test_every_defect_is_visible():
    """Grey values, beside the camera's noise of 3 in mid-grey."""
    change = np.abs(defect_alone(SurfacesSource(400, seed=3)))
    assert len(change) == 160
    assert change.max((1, 2)).min() >= 8


def test_the_cameras_see_the_same_parts_differently():
    first, second = (pictures(SurfacesSource(40, camera, seed=3)) for camera in ("first", "second"))
    correlations = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(first, second, strict=True)]
    assert np.median(correlations) > 0.7
    assert second.mean() < 0.8 * first.mean()
    centres, corners = np.s_[:, 12:20, 12:20], np.s_[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    fall = [(image[corners].mean() / image[centres].mean()) for image in (first, second)]
    assert fall[1] < 0.8 < fall[0]


def test_large_photographs_have_defects_as_small_and_up_to_the_edges():
    small, large = (np.abs(defect_alone(SurfacesSource(400, size=size, seed=3))) > 4 for size in (32, 128))
    assert large.any((1, 2)).all()
    assert large.sum() == pytest.approx(small.sum(), rel=0.2)
    centres = np.array([np.argwhere(mask).mean(0) for mask in large])
    assert centres.min(0).max() < 24
    assert centres.max(0).min() > 104


def test_a_written_folder_is_read_with_the_same_classes_and_pixels(tmp_path):
    write_surfaces(tmp_path / "new", parts=40, camera="second", seed=2)
    config = compose_config(["data=folder", f"data.path={tmp_path / 'new'}", "data.image_size=32", "data.channels=1"])
    data = load_data(DataSettings(**config.data))
    assert data.class_names == tuple(sorted(CLASSES))
    source = SurfacesSource(40, "second", seed=2)
    names = [CLASSES[label] for label in source.labels]
    truth = {(name, image.tobytes()) for name, image in zip(names, pictures(source), strict=True)}
    read = set()
    for part in (data.train, data.test):
        pixels = part.pixels(torch.arange(len(part))).numpy()
        read |= {(data.class_names[label], image.tobytes()) for label, image in zip(part.labels, pixels, strict=True)}
    assert read == truth
    with pytest.raises(SettingError, match=r"folder: got .*; expected a new or empty folder"):
        write_surfaces(tmp_path / "new", parts=40)


def test_the_command_writes_the_same_folder(tmp_path):
    assert main([str(tmp_path / "pilot"), "parts=40", "camera=second", "size=48"]) == 0
    write_surfaces(tmp_path / "same", parts=40, camera="second", seed=2, size=48)
    files = sorted(path.relative_to(tmp_path / "same") for path in (tmp_path / "same").rglob("*.png"))
    assert len(files) == 160
    assert all((tmp_path / "pilot" / file).read_bytes() == (tmp_path / "same" / file).read_bytes() for file in files)
    assert {file.name for file in files} >= {"seed2-part00000-0.png", "seed2-part00039-3.png"}
    with pytest.raises(SettingError, match="camera: got 'third'; expected one of first, second"):
        main([str(tmp_path / "other"), "camera=third"])
    with pytest.raises(SettingError, match="surfaces: got None; expected one folder to write into"):
        main(["parts=40"])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parts": 39}, "parts: got 39; expected a whole number of at least 40"),
        ({"parts": 40, "camera": "third"}, "camera: got 'third'; expected one of first, second"),
        ({"parts": 40, "size": 31}, "size: got 31; expected a whole number of at least 32"),
        ({"parts": 40, "seed": -1}, "seed: got -1"),
    ],
)
def test_unusable_arguments_are_refused(arguments, message):
    with pytest.raises(SettingError, match=message):
        SurfacesSource(**arguments)


def test_the_data_set_is_chosen_by_name(arrays):
    data = load_data(DataSettings(**compose_config(["data=surfaces"]).data))
    assert torch.equal(data.test.pixels(torch.arange(8))[:, 0], torch.from_numpy(arrays[1][0][:8]))
    assert len(data.train) == TRAIN_PARTS * PHOTOGRAPHS
    assert data.channels == 1
