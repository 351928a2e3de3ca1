"""data.tiles from training to prediction: defects next to corners, one row per picture, refusals."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from large_pictures import write_large_pictures
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from multilevel.__main__ import main
from multilevel.commands.compare_models import predictions
from multilevel.commands.labelled_images import labelled_images
from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.levels import MaskedAutoencoder
from multilevel.levels.tasks import TaskData
from multilevel.levels.tasks.classification import ClassificationTask
from multilevel.problems import Engine
from multilevel.recipes.data import DataSettings, load_data
from multilevel.recipes.evaluation import Candidate, EvaluationSettings, Setup, evaluate_features
from multilevel.recipes.evaluation.protocols.finetune import FinetuneProtocol
from multilevel.recipes.evaluation.protocols.linear_probe import LinearProbe
from multilevel.recipes.export import DriftReference, ExportedModel, write_export
from multilevel.recipes.export.heads import Heads, choose_head, score_on_test_images
from multilevel.solvers import SettingError

CPU = torch.device("cpu")
TINY = [
    "data=folder", "data.image_size=16", "data.patch_size=4", "data.channels=1", "data.batch_size=16", "model.width=16",
    "model.heads=2", "model.depth=1", "model.decoder_width=8", "model.decoder_heads=2", "model.decoder_depth=1",
    "model.patch_size=4", "data.near_copies=keep", "data.test_share=0.5", "mask.policy=random", "steps=20",
]  # fmt: skip


def darkest(images):
    """The darkest 4 x 4 pixels beside the mean, and the deviation of all."""
    cells = torch.nn.functional.avg_pool2d(images, 4).flatten(1)
    return torch.stack([cells.amin(1) - cells.mean(1), cells.std(1)], dim=1)


def tiny_data(root, seed, **changes):
    settings = DataSettings(
        name="folder", path=str(root), image_size=32, channels=1, patch_size=4, batch_size=4, mask_share=0.0,
        near_copies="keep", split_seed=seed, test_share=0.5, **changes,
    )  # fmt: skip
    data = load_data(settings, allow_no_mask=True)
    facts = TaskData(data.target_names, data.target_counts, 32, 4)
    return Setup(data, ClassificationTask(facts, loss="auto", metric="auto"), CPU, flip=True)


def scores(root, seed, **changes):
    """Of a linear probe on two features."""
    evaluation = EvaluationSettings(protocols=["linear_probe"], seed=seed)
    return evaluate_features([Candidate("darkest", darkest)], tiny_data(root, seed, **changes), evaluation)[0].metrics


def scores_from_scratch(root, seed, **changes):
    """Of a network trained from scratch."""
    setup = tiny_data(root, seed, **changes)
    torch.manual_seed(seed)
    sizes = {"patch_size": 4, "width": 32, "depth": 2, "heads": 2}
    decoder = {"decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}
    network = MaskedAutoencoder.of_size(image_size=32, channels=1, **sizes, **decoder, mask_ratio=0.5)
    evaluation = EvaluationSettings(protocols=["finetune"], seed=seed)
    evaluation.finetune = FinetuneProtocol(
        epochs=1, least_updates=400, batch_size=64, learning_rate=4e-3, layer_decay=1.0, mixup=0.0, cutmix=0.0,
        label_smoothing=0.0, drop_path=0.0,
    )  # fmt: skip
    return evaluate_features([Candidate("network", network.features, network)], setup, evaluation)[0].metrics


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_network_trained_from_scratch_on_tiles_finds_defects_if_they_are_marked(tmp_path, seed):
    root = write_large_pictures(tmp_path / "images", {"good": 60, "pitted": 60}, seed, masks=True)
    rows = {f"tiles={tiles}": scores_from_scratch(root, seed, tiles=tiles) for tiles in (None, 4, 6)}
    shutil.rmtree(root / "masks")
    rows["tiles=4, no masks"] = scores_from_scratch(root, seed, tiles=4)
    areas = {name: row["macro_roc_auc"] for name, row in rows.items()}
    print(seed, {name: (round(areas[name], 3), round(row["balanced_accuracy"], 3)) for name, row in rows.items()})
    assert min(areas["tiles=4"], areas["tiles=6"]) > 0.98
    assert areas["tiles=4, no masks"] < 0.8


def test_a_defect_next_to_a_corner_is_found_with_tiles_and_missed_without(tmp_path):
    """A pit of 14 pixels in pictures of 512 x 512, 30 scored ones, seeds 0 to 4. Measured: areas under the ROC curve
    of 0.96 to 1.00 with tiles and 0.35 to 0.72 without, balanced accuracies of 0.93 to 1.00 and 0.53 to 1.00."""
    found, missed = [], []
    for seed in range(5):
        root = write_large_pictures(tmp_path / str(seed), {"good": 30, "pitted": 30}, seed, masks=True)
        found.append(scores(root, seed, tiles=4))
        missed.append(scores(root, seed))
    assert min(score["macro_roc_auc"] for score in found) > 0.9
    assert np.mean([score["balanced_accuracy"] for score in found]) > 0.9
    # without skill an area of 15 against 15 images has a standard error of 0.11, their mean one of 0.05
    assert np.mean([score["macro_roc_auc"] for score in missed]) < 0.65
    assert np.mean([score["balanced_accuracy"] for score in missed]) < 0.65


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large") / "images"
    return write_large_pictures(folder, {"good": 24, "pitted": 24}, masks=True, width=96, height=64)


@pytest.fixture(scope="module")
def recipe(root):
    return trained(f"data.path={root}", "data.tiles=3")


def trained(*settings):
    recipe = build_recipe(compose_config([*TINY, *settings]))
    Engine(recipe.graph, seed=0).run(20)
    return recipe


@pytest.fixture(scope="module")
def choice(recipe):
    return choose_head(recipe, "linear_probe")


@pytest.fixture(scope="module")
def export(recipe, choice, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "export"
    write_export(choice.model, folder, "transformers", lambda loss: "card")
    return folder


def plain_answers(recipe, model, part):
    """Labels and probabilities of a part's pictures, by plain loops over its tiles."""
    source, good = part.images.source, recipe.data.class_names.index("good")
    by_picture = {}
    for position, row in enumerate(part.indices.tolist()):
        images = recipe.data.normalize(part.pixels(torch.tensor([position])))
        with torch.no_grad():
            chances = model.classifier(model.autoencoder.features(images)).double().softmax(1)[0].numpy()
        by_picture.setdefault(source.picture(row), []).append(chances)
    worst = [min(tiles, key=lambda chances: chances[good]) for tiles in by_picture.values()]
    labels = [recipe.data.class_names.index(source.whole.names[row].split("/")[0]) for row in by_picture]
    return np.array(labels), np.array(worst), [source.whole.names[row] for row in by_picture]


def test_test_scores_count_pictures(recipe, choice):
    labels, chances, _ = plain_answers(recipe, choice.model, recipe.data.test)
    assert len(labels) == 24
    metrics = score_on_test_images(choice.model, recipe)
    assert metrics["balanced_accuracy"] == balanced_accuracy_score(labels, chances.argmax(1))
    assert metrics["macro_roc_auc"] == pytest.approx(roc_auc_score(labels, chances[:, 1]))


def test_every_protocol_and_reference_scores_pictures(recipe):
    names = ["linear_probe", "knn", "linear_probe_sgd", "head", "finetune"]
    recipe.settings.evaluation.protocols = names
    for name in ("linear_probe_sgd", "head", "finetune"):
        setattr(recipe.settings.evaluation, name, quick(recipe.settings.evaluation.protocol(name)))
    scored = recipe.evaluate()
    counts = [24 * score.metrics["accuracy"] for score in scored]
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-9)  # of 24 test pictures, not of their tiles
    majority = next(score for score in scored if score.encoder == "majority class")
    assert majority.metrics["accuracy"] == 0.5
    assert {score.protocol for score in scored} == set(names)


def quick(protocol):
    protocol.epochs, protocol.least_updates = 1, 2
    return protocol


def test_shares_of_the_labels_are_shares_of_pictures(recipe):
    seen = []

    class Seen(LinearProbe):
        def predict(self, trial):
            seen.append((len(trial.fitted.pictures), len(trial.fitted)))
            assert len(trial.features()[0]) == len(trial.fitted)
            return super().predict(trial)

    settings = EvaluationSettings(protocols=["linear_probe"], labels=[0.5, 1.0])
    settings.linear_probe = Seen()
    evaluate_features([Candidate("pixels", lambda images: images.flatten(1))], recipe.setup(), settings)
    tiles = len(recipe.data.train) // len(recipe.data.train.pictures)
    assert seen == [(12, 12 * tiles), (24, 24 * tiles)]


def test_the_head_is_chosen_by_pictures_that_are_never_in_two_folds(recipe, choice):
    heads = Heads(recipe, recipe.trained_model())
    pictures = recipe.data.train.pictures
    for fit, held in heads.folds:
        assert not set(pictures.numbers[fit]) & set(pictures.numbers[held])
    assert choice.labels.tolist() == pictures.labels.tolist()
    assert choice.probabilities.shape == (24, 2)
    labels, probabilities = heads.held_out("linear_probe")
    assert choice.scores["linear_probe"] == pytest.approx(roc_auc_score(labels, probabilities[:, 1]))


def test_an_export_predicts_files_as_it_was_evaluated(recipe, choice, export, root, tmp_path, capsys):
    labels, chances, names = plain_answers(recipe, choice.model, recipe.data.test)
    files = [str(root / name) for name in names]
    assert main(["predict", str(export), *files, f"output={tmp_path / 'p.csv'}", "batch_size=5"]) == 0
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert [row["file"] for row in rows] == files
    written = np.array([[float(row[name]) for name in recipe.data.class_names] for row in rows])
    np.testing.assert_allclose(written, chances, atol=2e-6)  # six digits
    assert (
        balanced_accuracy_score(labels, [recipe.data.class_names.index(row["label"]) for row in rows])
        == (score_on_test_images(choice.model, recipe)["balanced_accuracy"])
    )


def test_the_reference_and_new_images_have_one_row_a_picture(recipe, choice, export, root):
    reference = DriftReference.load(export)
    assert len(reference.sample) == len(reference.logits) == len(recipe.data.train.pictures)
    assert reference.sample.optics[:, 5:].tolist() == [[96, 64]] * 24  # of pictures, not of tiles
    model, part = ExportedModel(export, CPU), recipe.data.train
    with Image.open(root / part.images.source.whole.names[part.pictures.rows[0]]) as picture:
        logits, features = model.of_pictures([model.pixels(picture)], 64)
        tile = model.decisive(picture)
    np.testing.assert_allclose(features[0], reference.sample.features[0], atol=1e-5)
    np.testing.assert_allclose(logits[0], reference.logits[0], atol=1e-5)
    np.testing.assert_allclose(model(tile[None])[0], logits, atol=1e-5)  # the tile that stands for the picture


def test_the_other_commands_read_pictures(export, root, tmp_path, capsys):
    folder = tmp_path / "fresh"
    write_large_pictures(folder, {"good": 12, "pitted": 12}, seed=1, width=96, height=64)
    assert main(["monitor", str(export), str(folder), f"output={tmp_path / 'm.json'}"]) in (0, 3, 4)
    assert json.loads((tmp_path / "m.json").read_text())["images"] == 24
    assert main(["suggest", str(export), str(folder), "count=3", f"output={tmp_path / 's.csv'}"]) == 0
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 4
    assert main(["inspect", str(export), str(folder), f"output={tmp_path / 'r.html'}"]) == 0
    answers = predictions(ExportedModel(export, CPU), labelled_images(folder, None), 64)
    assert answers.probabilities.shape == (24, 2)
    capsys.readouterr()
    assert main(["inspect", str(export), str(folder), f"output={tmp_path / 'x.html'}", "good=pitted"]) == 2
    assert "good: got 'pitted'; expected good, by which the export chooses the tile" in capsys.readouterr().err


def test_an_encoder_without_classes_takes_the_mean_of_the_tiles(root, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "unlabelled").symlink_to(root / "good")
    recipe = trained(f"data.path={tmp_path / 'images'}", "data.tiles=3")
    write_export(recipe.trained_model(), tmp_path / "export", "transformers", lambda loss: "card")
    model = ExportedModel(tmp_path / "export", CPU)
    with Image.open(root / "good" / "000.pgm") as picture:
        tiles = model.pixels(picture)
        logits, features = model.of_pictures([tiles], 2)
    assert logits is None
    np.testing.assert_allclose(features[0], model(tiles)[1].mean(0), atol=1e-6)


def test_what_cannot_be_done_with_tiles_is_refused(recipe, choice, root, tmp_path):
    with pytest.raises(SettingError, match=r"format: got 'onnx'; expected transformers: a model with data.tiles=3"):
        write_export(choice.model, tmp_path / "export", "onnx", lambda loss: "card")
    assert not (tmp_path / "export").exists()
    other = ["recipe=hyper_cleaning", "data=folder", f"data.path={root}", "data.tiles=2"]
    with pytest.raises(SettingError, match=r"data.tiles: got 2; expected null: recipe=hyper_cleaning"):
        build_recipe(compose_config(other))
    with pytest.raises(SettingError, match=r"data.tiles: got 3; expected null: only task=classification"):
        trained(f"data.path={root}", "data.tiles=3", "task=segmentation")
