"""multilevel inspect: the report and its numbers, from an export and a folder of generated images."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix, roc_auc_score
from transformers import AutoImageProcessor, AutoModelForImageClassification

from multilevel.__main__ import main
from multilevel.inspection.patches import PatchShares

GOOD, SCRATCH, STAIN = "良品", "傷", "汚れ<2>"
TINY = [
    "model.width=16", "model.heads=2", "model.depth=2", "model.decoder_width=8", "model.decoder_heads=2",
    "model.decoder_depth=1", "data.batch_size=4", "data.image_size=16", "data.patch_size=4",
    "evaluate=false", "steps=2",
]  # fmt: skip


def draw_images(folder, name, count, seed):
    """Grey noise; defects have a bright stroke or a dark corner."""
    random = np.random.default_rng(seed)
    (folder / name).mkdir(parents=True)
    for index in range(count):
        pixels = random.integers(90, 160, (20, 20), dtype=np.uint8)
        if name == SCRATCH:
            pixels[index % 18 : index % 18 + 2] = 240
        if name == STAIN:
            pixels[:8, :8] = 20
        Image.fromarray(pixels).save(folder / name / f"{index:02d}.png")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with a run, its two exports, one of them also without its choice of a head, and new images."""
    folder = tmp_path_factory.mktemp("inspection")
    for kind, seed in (("training", 0), ("new", 10)):
        draw_images(folder / kind, GOOD, 40, seed)
        draw_images(folder / kind, SCRATCH, 14, seed + 1)
        draw_images(folder / kind, STAIN, 12, seed + 2)
    settings = ["data=folder", f"data.path={folder / 'training'}", "data.near_copies=keep"]
    assert main(["train", *TINY, *settings, f"output={folder / 'run'}"]) == 0
    assert main(["export", str(folder / "run"), "head=own", "references=false", f"output={folder / 'model'}"]) == 0
    assert (
        main(
            ["export", str(folder / "run"), "head=own", "references=false", "format=onnx", f"output={folder / 'onnx'}"]
        )
        == 0
    )
    shutil.copytree(folder / "model", folder / "plain", ignore=shutil.ignore_patterns("inspection.json"))
    return folder


@pytest.fixture
def inspect(places, tmp_path):
    def run(folder=None, *settings, export="model", status=0):
        """The numbers and the page."""
        arguments = ["inspect", str(places / export), str(folder or places / "new"), *settings]
        assert main([*arguments, f"output={tmp_path / 'report.html'}"]) == status
        return json.loads((tmp_path / "report.json").read_text("utf-8")), (tmp_path / "report.html").read_text("utf-8")

    return run


class Page(HTMLParser):
    """Checks that elements are closed in order, and collects text and attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.links = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img", "br", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def scores_by_transformers(places, names):
    """Probabilities by a model and processor that know nothing of this package."""
    model = AutoModelForImageClassification.from_pretrained(places / "model").eval()
    processor = AutoImageProcessor.from_pretrained(places / "model")
    images = [Image.open(places / "new" / name) for name in names]
    with torch.no_grad():
        logits = model(processor(images, return_tensors="pt")["pixel_values"]).logits
    return logits.double().softmax(1).numpy(), [model.config.id2label[label] for label in range(logits.shape[1])]


def test_the_numbers_are_those_of_scikit_learn(places, inspect):
    numbers, text = inspect(export="plain")
    names, truth = zip(*((row["file"], row["class"]) for row in numbers["files"]), strict=True)
    assert sorted(names) == sorted(p.relative_to(places / "new").as_posix() for p in (places / "new").rglob("*.png"))
    probabilities, classes = scores_by_transformers(places, names)
    scores = 1 - probabilities[:, classes.index(GOOD)]
    # the processor resizes with other rounding at the edges, so scores agree to 1e-2 and not better
    assert [row["classifier"] for row in numbers["files"]] == pytest.approx(scores, abs=1e-2)
    own, defect = np.array([row["classifier"] for row in numbers["files"]]), np.array(truth) != GOOD
    assert numbers["scores"][0]["area"]["value"] == pytest.approx(roc_auc_score(defect, own), abs=1e-12)
    stopped = own >= numbers["decision"]["threshold"]["value"]
    assert numbers["decision"]["recall"]["count"] == stopped[defect].sum()
    assert numbers["decision"]["false_alarms"]["count"] == stopped[~defect].sum() <= 0.02 * 40
    predicted = [classes[label] for label in probabilities.argmax(1)]
    expected = confusion_matrix(truth, predicted, labels=numbers["confusions"]["rows"])
    order = [classes.index(name) for name in numbers["confusions"]["rows"]]
    assert np.abs(np.array(numbers["confusions"]["counts"])[:, order] - expected).sum() <= 4  # two on the border
    assert numbers["good"] == {"name": GOOD, "reason": "name"}
    assert "optimistic" in text


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_page_stands_by_itself(places, inspect, tmp_path, language):
    costs = ["cost.miss=50", "cost.false_alarm=2", "parts_per_day=900", "machine_hours=3", "cost.machine_hour=9"]
    numbers, text = inspect(None, f"language={language}", *costs, "max_false_alarms=0.2", "worst=3")
    page = Page(text)
    assert page.links
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    for place in (places, tmp_path, places.parent, "http:", "https:", "file:", "<script", "@import", "url("):
        assert str(place) not in text
        assert str(place) not in json.dumps(numbers)
    shown = "".join(page.texts)
    for name in (GOOD, SCRATCH, STAIN):
        assert name in shown
    assert re.search(r"\{\w*\}", shown.split("</style>")[-1].split("}\n", 1)[-1]) is None  # every placeholder is filled
    assert f'<html lang="{language}">' in text
    assert "<text" in text  # drawn by the browser, in the reader's fonts
    assert numbers["money"]["costs"]["training"] == 27
    assert "1000 × (" in shown
    assert ("検出率" in shown) == (language == "ja")


def test_the_shares_of_patches_sum_to_the_logit(places):
    export = places / "model"
    model = AutoModelForImageClassification.from_pretrained(export).eval()
    good = {name: label for label, name in model.config.id2label.items()}[GOOD]
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(images).logits.double().numpy()
    shares = PatchShares(export, good, torch.device("cpu"))(images.numpy())
    side = 16 // model.config.patch_size
    assert shares.values.shape == (5, side, side)
    assert shares.values.std(axis=(1, 2)).min() > 0
    for row in range(5):
        defects = [label for label in range(3) if label != good]
        best = max(defects, key=lambda label: logits[row, label])
        assert shares.classes[row] == best
        difference = logits[row, best] - logits[row, good]
        assert shares.values[row].sum(dtype=np.float64) == pytest.approx(difference, abs=1e-5)
        assert shares.differences[row] == pytest.approx(difference, abs=1e-5)


def test_onnx_gives_the_same_numbers_and_says_what_it_lacks(inspect):
    first, _ = inspect()
    second, text = inspect(None, export="onnx")
    for before, after in zip(first["files"], second["files"], strict=True):
        assert before["classifier"] == pytest.approx(after["classifier"], abs=1e-5)
    assert "an ONNX model does not give the tokens" in text


def copy_with(places, tmp_path, name, contents):
    export = tmp_path / "stored"
    if not export.exists():
        shutil.copytree(places / "model", export)
    (export / name).write_text(json.dumps(contents))
    return export


def test_out_of_fold_probabilities_choose_the_threshold(places, inspect, tmp_path):
    classes = inspect()[0]["confusions"]["columns"]
    good, scratch = classes.index(GOOD), classes.index(SCRATCH)
    scores = np.linspace(0.30, 0.79, 50)  # of good images; 0.02 of 50 is one, which may be stopped
    probabilities = np.zeros((60, 3))
    probabilities[:, scratch] = [*scores, *np.full(10, 0.95)]
    probabilities[:, good] = 1 - probabilities[:, scratch]
    labels = [good] * 50 + [scratch] * 10
    point = {"good": GOOD, "threshold": 0.1, "rule": "false_alarms", "limit": 0.02}
    stored = {"operating_point": point, "probabilities": probabilities.tolist(), "labels": labels}
    export = copy_with(places, tmp_path, "inspection.json", stored)
    numbers, text = inspect(None, export=export)
    threshold = numbers["decision"]["threshold"]
    assert threshold == {"value": pytest.approx(0.785), "rule": "false_alarms", "source": "out_of_fold", "images": 60}
    assert numbers["choices"][1]["threshold"]["value"] == pytest.approx((0.79 + 0.95) / 2)  # finds all defects
    assert numbers["good"]["reason"] == "stored"
    assert "optimistic. On new parts" not in text
    point["limit"] = 0.2
    copy_with(places, tmp_path, "inspection.json", stored)
    assert inspect(None, export=export)[0]["decision"]["threshold"]["value"] == pytest.approx(0.695)  # 10 of 50
    limited, _ = inspect(None, "max_false_alarms=0.02", export=export)
    assert limited["decision"]["threshold"]["value"] == pytest.approx(0.785)
    del stored["probabilities"]
    copy_with(places, tmp_path, "inspection.json", stored)
    assert inspect(None, export=export)[0]["decision"]["threshold"]["source"] == "stored"
    assert inspect(None, "threshold=recall", export=export)[0]["decision"]["threshold"]["source"] == "folder"


def test_a_better_reference_comes_first(places, inspect, tmp_path):
    references = {"raw pixels": 0.907, "majority class": 0.5, "supervised from scratch": 0.95}
    scores = {"metric": "macro_roc_auc", "model": 0.8, "references": references}
    numbers, _ = inspect(None, export=copy_with(places, tmp_path, "evaluation.json", scores))
    assert numbers["verdict"].startswith(
        "Something simpler does better than this model: on the run's test images its area under the ROC curve is "
        "0.800, that of the same network supervised from scratch 0.950, raw pixels 0.907."
    )


def test_permuted_labels_say_so(places, inspect, tmp_path):
    files, random = sorted((places / "new").rglob("*.png")), np.random.default_rng(0)
    for index, (file, label) in enumerate(zip(files, random.permutation([p.parent.name for p in files]), strict=True)):
        (tmp_path / "permuted" / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "permuted" / label / f"{index}.png")
    numbers, _ = inspect(tmp_path / "permuted")
    for row in numbers["scores"]:
        assert abs(row["area"]["value"] - 0.5) < 0.2  # standard error 0.07
    assert numbers["verdict"].startswith("The model does not tell defects from good parts")


def test_good_images_only(places, inspect, tmp_path):
    shutil.copytree(places / "new" / GOOD, tmp_path / "good" / GOOD)
    numbers, text = inspect(tmp_path / "good")
    assert numbers["claim"]["verdict"] == "unknown"
    assert "the folder has no defects" in numbers["verdict"]
    assert numbers["scores"][0]["area"] is None
    assert numbers["money"] is None
    assert "Most suspicious pictures" in text
    Page(text)


def test_defects_only(places, inspect, tmp_path, capsys):
    shutil.copytree(places / "new" / STAIN, tmp_path / "defects" / STAIN)
    assert main(["inspect", str(places / "plain"), str(tmp_path / "defects")]) == 2
    assert "a number, since there are no good images to choose it on" in capsys.readouterr().err
    numbers, text = inspect(tmp_path / "defects", "threshold=0.5")
    assert "the folder has no good parts" in numbers["verdict"].lower()
    assert numbers["decision"]["threshold"]["source"] == "given"
    Page(text)


def test_images_without_labels_are_sorted_by_distance(places, inspect, tmp_path):
    folder = tmp_path / "loose"
    shutil.copytree(places / "new" / GOOD, folder)
    Image.fromarray(np.full((20, 20), 255, np.uint8)).save(folder / "white.png")
    numbers, text = inspect(folder, "worst=2", "threshold=0.5")
    assert not numbers["labelled"]
    assert max(numbers["files"], key=lambda row: row["distance"])["file"] == "white.png"
    assert re.search(r"<figcaption><b>(.*?)</b>", text)[1] == "white.png"
    assert text.count("<figure>") == 2
    assert "no labels" in numbers["verdict"]
    assert "At the threshold 0.5" in numbers["verdict"]
    assert (numbers["decision"]["recall"]["total"], numbers["decision"]["false_alarms"]["total"]) == (0, 0)
    Page(text)


def test_training_images_are_recognized(places, inspect):
    numbers, text = inspect(places / "training")
    assert numbers["distance"]["repeated"] >= 7
    assert "have the features of a training image" in text


def test_unknown_classes_are_refused_counted_or_unlabelled(places, inspect, tmp_path, capsys):
    folder = tmp_path / "folder"
    shutil.copytree(places / "new", folder)
    shutil.copytree(places / "new" / SCRATCH, folder / "dent")
    assert main(["inspect", str(places / "model"), str(folder), f"output={tmp_path / 'x.html'}"]) == 2
    assert f"{folder / 'dent'}'; expected one of the model's classes" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()
    numbers, text = inspect(folder, "unknown=defect")
    assert numbers["decision"]["recall"]["total"] == 14 + 12 + 14
    assert numbers["stopped"]["dent"]["total"] == 14
    Page(text)
    numbers, text = inspect(folder, "unknown=unlabelled")
    assert (numbers["images"], numbers["left_out"]) == (66, 14)
    assert "14 images without a label are left out" in text


def test_an_unreadable_file_is_named(places, inspect, tmp_path, capsys):
    folder = tmp_path / "folder"
    shutil.copytree(places / "new", folder)
    (folder / GOOD / "broken.png").write_bytes(b"no image")
    numbers, text = inspect(folder, status=1)
    assert list(numbers["unreadable"]) == [f"{GOOD}/broken.png"]
    assert numbers["images"] == 66
    assert "broken.png" in text
    assert "broken.png" in capsys.readouterr().err


def test_an_encoder_without_classifier_judges_by_distance(inspect, tmp_path):
    draw_images(tmp_path / "training", "all", 40, 0)
    settings = ["data=folder", f"data.path={tmp_path / 'training' / 'all'}", "mask.policy=random"]
    assert main(["train", *TINY, *settings, "data.near_copies=keep", f"output={tmp_path / 'run'}"]) == 0
    assert main(["export", str(tmp_path / "run"), f"output={tmp_path / 'encoder'}"]) == 0
    numbers, text = inspect(None, export=tmp_path / "encoder")
    assert (numbers["score"], numbers["decision"]["threshold"]["source"]) == ("distance", "reference")
    assert numbers["confusions"] is None
    assert [row["name"] for row in numbers["scores"]] == ["distance"]
    assert "they need a classifier" in text
    Page(text)
    numbers, _ = inspect(None, "threshold=recall", export=tmp_path / "encoder")
    assert numbers["decision"]["threshold"]["source"] == "folder"
    numbers, text = inspect(tmp_path / "training" / "all", export=tmp_path / "encoder")
    assert numbers["good"] is None
    Page(text)


WRONG = [
    ([], "inspect: got None; expected an exported folder and a folder of images"),
    (["{model}", "{new}", "{new}"], "expected an exported folder and a folder of images"),
    (["{new}", "{new}"], "EXPORT: got"),
    (["{model}", "{tmp}/none"], "FOLDER: got '{tmp}/none'; expected a folder with a subfolder"),
    (["{model}", "{empty}"], "holds no images"),
    (["{model}", "{new}", "good=fine"], "good: got 'fine'; expected one of the classes"),
    (["{model}", "{new}", "threshold=low"], "threshold: got 'low'; expected false_alarms, recall, or a number"),
    (["{model}", "{new}", "threshold=nan"], "threshold: got 'nan'"),
    (["{model}", "{new}", "cost.miss=5"], "cost.false_alarm: got None; expected a cost"),
    (["{model}", "{new}", "cost.mis=5"], "cost.mis: got '5'; expected a setting of inspect: output"),
    (["{model}", "{new}", "cost.miss=-5"], "cost.miss: got -5"),
    (["{model}", "{new}", "min_recall=1"], "min_recall: got 1"),
    (["{model}", "{new}", "language=fr"], "language: got 'fr'; expected one of en, ja"),
    (["{model}", "{new}", "output=report.pdf"], "output: got 'report.pdf'; expected a .html file"),
    (["{model}", "{new}", "output={model}/inspection.html"], "expected a file outside the export"),
    (["{plain}", "{new}/" + SCRATCH, "threshold=recall"], "threshold: got 'recall'; expected"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "text"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_wrong_input_is_one_line(arguments, text, places, tmp_path, tmp_path_factory, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    empty = tmp_path_factory.mktemp("empty")
    (empty / "class").mkdir()
    words = {"{model}": places / "model", "{plain}": places / "plain", "{new}": places / "new"}
    words |= {"{tmp}": tmp_path, "{empty}": empty}

    def filled(value):
        for name, place in words.items():
            value = value.replace(name, str(place))
        return value

    files = sorted((places / "model").iterdir())
    assert main(["inspect", *map(filled, arguments)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert filled(text) in lines[0]
    assert list(tmp_path.iterdir()) == []
    assert sorted((places / "model").iterdir()) == files
