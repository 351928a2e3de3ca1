"""Writes the model card, from a run's settings and results only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from multilevel.recipes.evaluation import Score, metric_title, not_better
from multilevel.recipes.evaluation.remarks import few_images
from multilevel.recipes.export.quantization import QuantizationLoss
from multilevel.recipes.export.trained import TrainedModel
from multilevel.solvers import MultilevelError

PRIVATE = (
    ("data", "path"),
    ("data", "unlabelled"),
    ("data", "division"),
    ("output",),
    ("init",),
)  # settings that depend on the machine
LOAD = {
    "transformers": """```python
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, ViTMAEForPreTraining

processor = AutoImageProcessor.from_pretrained("FOLDER")
{lines}```

The weights file holds the encoder twice, under the names of each class, so loading one class reports the other's names
as unexpected, and dinov2 as the folder's type. The decoder's mask ratio is the same as in training.
""",
    "onnx": """The file holds its preprocessing and class names, so onnxruntime and Pillow suffice:

```python
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("FOLDER/model.onnx")
for name in sys.argv[1:]:
    picture = ImageOps.exif_transpose(Image.open(name)).convert("{mode}")
    image = np.asarray(picture).reshape(1, picture.height, picture.width, {channels})
    label, probabilities = session.run(["label", "probabilities"], {"image": image})
    print(name, label[0], *probabilities[0])
```

`image` is uint8 [batch, height, width, {channels}]: images of any size, equal within a batch. Outputs: `label` (text),
`probabilities` and `logits` [batch, classes], `features` [batch, width]; with a class of good parts also `defect`, the
probability of a defect [batch], and `stop` [batch], whether it reaches the threshold. The classes are in the file's
metadata, as JSON under `class_names`. `multilevel predict` also converts pictures of 16 bits, and puts transparent ones
on white.
""",
}
CLASSES = (
    ("AutoModelForImageClassification", "classifier", "classes by `config.id2label`"),
    ("AutoModel", "encoder", "`last_hidden_state`: class token, then patches"),
    ("ViTMAEForPreTraining", "autoencoder", "encoder and decoder"),
)


def model_card(
    trained: TrainedModel,
    config: Mapping[str, Any],
    summary: Mapping[str, Any] | None,
    step: int,
    format: str,
    choice: str | None = None,
    test_scores: Mapping[str, float] | None = None,
    remarks: Sequence[str] = (),
    quantization: QuantizationLoss | None = None,
) -> str:
    """The text of README.md.

    Args:
        trained: the model.
        config: the run's settings.
        summary: the run's ``summary.json``; None if the run has not ended.
        step: step of the exported checkpoint.
        format: transformers or onnx.
        choice: how the head was chosen, in words.
        test_scores: metrics of the exported classifier on the test images.
        remarks: more about the classifier, each a sentence without a full stop.
        quantization: the measured loss of int8, if the model is quantized.

    Raises:
        MultilevelError: the summary is damaged.
    """
    try:
        metrics, versions = _metrics(summary), _versions(summary)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise MultilevelError(f"the run's summary.json has contents that no run writes ({reason})") from error
    classifies = trained.classifier is not None
    task = "image-classification" if classifies else "image-feature-extraction"
    library = "transformers" if format == "transformers" else "onnx"
    head = f"---\nlibrary_name: {library}\npipeline_tag: {task}\ntags: [multilevel, masked-autoencoder]\n---\n"
    title = f"# {config['recipe']} on {config['data']['name']}"
    sections = [
        _model(trained, config, step),
        _data(trained, config),
        _deployed(trained, choice, test_scores, remarks),
        metrics,
        *(
            [f"## Quantization\n\nWeights and products of matrices have 8 bits. {quantization}.\n"]
            if quantization
            else []
        ),
        _use(trained),
        "## Loading\n\n" + _loading(trained, format),
        versions,
        _settings(config),
    ]
    return "\n".join([head, title, "", *sections])


def _model(trained: TrainedModel, config: Mapping[str, Any], step: int) -> str:
    mae, size = trained.autoencoder.mae.config, trained.data.image_size
    count = sum(parameter.numel() for parameter in trained.autoencoder.mae.vit.parameters())
    text = (
        f"A vision transformer of {count:,} parameters (width {mae.hidden_size}, depth {mae.num_hidden_layers}, "
        f"patches of {mae.patch_size} x {mae.patch_size} pixels, images of {size} x {size}), pretrained as a masked "
        f"autoencoder with {mae.mask_ratio:.0%} of the patches hidden (`mask.policy={config['mask']['policy']}`), "
        f"exported at step {step} of {config['steps']}."
    )
    if trained.classifier is None:
        return f"{text} It is an encoder and a decoder without a classifier.\n"
    return f"{text} The classifier is one linear layer on the mean of the patch tokens.\n"


def _data(trained: TrainedModel, config: Mapping[str, Any]) -> str:
    data = trained.data
    source = config["data"]["hub"] if config["data"]["hub"] and not config["data"]["path"] else config["data"]["name"]
    kind = "grey" if data.channels == 1 else "colour"
    lines = [f"## Data\n\n`{source}`, {kind} images: {len(data.pretrain.pictures):,} for pretraining"]
    if data.labelled:
        lines[0] += f", {len(data.finetune.pictures):,} for the classifier, {len(data.mask.pictures):,} for mask "
        lines[0] += f"learning, {len(data.test.pictures):,} for testing.\n"
        lines.append(f"{len(data.class_names)} classes: {', '.join(data.class_names)}.\n")
    else:
        lines[0] += ", without labels.\n"
    if data.tiling is not None:
        lines.append(f"{data.tiling.describe()} Only `multilevel` cuts them: the image processor takes one tile.\n")
    return "\n".join(lines)


def scores_line(scores: Mapping[str, float], count: int) -> str:
    """Metrics of an export in one line.

    >>> scores_line({"accuracy": 0.5, "macro_roc_auc": 0.75}, 8)
    'this export on 8 test images: accuracy 50.0%, area under the ROC curve 75.0%'
    """
    values = ", ".join(f"{metric_title(name)} {100 * score:.1f}%" for name, score in scores.items())
    return f"this export on {count:,} test images: {values}"


def _deployed(
    trained: TrainedModel, choice: str | None, scores: Mapping[str, float] | None, remarks: Sequence[str]
) -> str:
    if choice is None:
        return ""
    lines = ["## Classifier\n", f"{choice}.\n"]
    if scores is not None:
        line = scores_line(scores, len(trained.data.test.pictures))
        lines.append(f"{line[0].upper()}{line[1:]}. These images had no part in the choice.\n")
    lines += [f"{remark[0].upper()}{remark[1:]}.\n" for remark in remarks]
    return "\n".join(lines)


def _metrics(summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return "## Metrics\n\nThe model was exported before the run ended, so there are no metrics.\n"
    lines = ["## Metrics\n"]
    for name, level in summary["levels"].items():
        metrics = "".join(f", {metric} {value:.4g}" for metric, value in level["last_metrics"].items())
        loss = "no updates" if level["last_loss"] is None else f"loss {level['last_loss']:.4g}"
        lines.append(f"- level `{name}`, at the end of training: {loss}{metrics}")
    scores = summary["evaluation"]
    if not scores:
        return "\n".join([*lines, "\nThe run has not been evaluated.\n"])
    names = list(dict.fromkeys(name for score in scores for name in score["metrics"]))
    lines += ["\nScores of `multilevel evaluate`:\n", _row("encoder", "protocol", "labels", *names)]
    lines.append(_row(*["---"] * (3 + len(names))))
    for score in scores:
        values = [f"{score['metrics'][name]:.4f}" if name in score["metrics"] else "" for name in names]
        lines.append(_row(score["encoder"], score["protocol"], f"{score['labels']:.0%}", *values))
    counts = summary.get("scored_images") or {}  # missing from the summaries of older runs
    remarks = [not_better([Score(**score) for score in scores]), few_images(counts, "scored")]
    lines += [f"\n{remark[0].upper()}{remark[1:]}." for remark in remarks if remark]
    return "\n".join(lines) + "\n"


def _use(trained: TrainedModel) -> str:
    lines = ["## Intended use and limits\n"]
    if trained.classifier is None:
        lines.append("Features of images like those of the training data, and reconstructions of hidden patches.")
    else:
        lines.append(
            f"Labels images like those of the training data with one of {len(trained.data.class_names)} classes. It "
            "predicts one of these classes for any image, and its probabilities are not calibrated."
        )
    lines.append(
        "Its performance on other data is unknown. `multilevel monitor FOLDER IMAGES` measures how far new images are "
        "from the training images."
    )
    if trained.data.channels == 1:
        lines.append('Convert images to grey before the image processor sees them: `image.convert("L")`.')
    return "\n".join(lines) + "\n"


def _loading(trained: TrainedModel, format: str) -> str:
    data = trained.data
    offered = CLASSES if trained.classifier is not None else CLASSES[1:]
    lines = "".join(f'{name} = {kind}.from_pretrained("FOLDER")  # {output}\n' for kind, name, output in offered)
    text = LOAD[format].replace("{lines}", lines).replace("{channels}", str(data.channels))
    return text.replace("{mode}", "L" if data.channels == 1 else "RGB")


def _versions(summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return ""
    return "## Versions\n\n" + ", ".join(f"{name} {number}" for name, number in summary["versions"].items()) + "\n"


def _settings(config: Mapping[str, Any]) -> str:
    shown = OmegaConf.create(dict(config))
    for path in PRIVATE:
        parent = OmegaConf.select(shown, ".".join(path[:-1])) if path[:-1] else shown
        if path != ("init",) or Path(parent.get("init") or "").is_absolute():  # a name on the hub is for everybody
            parent.pop(path[-1], None)
    return f"## Settings\n\n```yaml\n{OmegaConf.to_yaml(shown)}```\n"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
