"""Exported models made in a second: an untrained encoder, and scikit-learn's classifier on its features."""

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from multilevel.levels import MaskedAutoencoder
from multilevel.recipes.data import DataSettings, load_data
from multilevel.recipes.export import TrainedModel, write_export

SIZES = {
    "patch_size": 4, "width": 16, "depth": 1, "heads": 2, "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2,
}  # fmt: skip
#: Where each class has a bright spot; the class good has none.
SPOTS = {"good": None, "dent": (2, 2), "burr": (10, 10)}


def picture(random, kind, strength=110):
    """Noise of 16 x 16 pixels, with the spot of a class."""
    pixels = random.normal(90, 25, (16, 16))
    if SPOTS[kind] is not None:
        row, column = SPOTS[kind]
        pixels[row : row + 4, column : column + 4] += strength
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write_pictures(folder, counts, seed=0, strength=110):
    """A folder for each class."""
    random = np.random.default_rng(seed)
    for kind, count in counts.items():
        (folder / kind).mkdir(parents=True)
        for number in range(count):
            picture(random, kind, strength).save(folder / kind / f"{number:03d}.png")
    return folder


def write_model(folder, images, classifies=True, strength=1.0, seed=0):
    """An export whose classifier is fitted to the images; regularized the more, the smaller its strength."""
    settings = DataSettings(
        name="folder", path=str(images), image_size=16, channels=1, patch_size=4, batch_size=4, mask_share=0
    )
    data = load_data(settings, allow_no_mask=True)
    torch.manual_seed(seed)
    autoencoder = MaskedAutoencoder.of_size(image_size=16, channels=1, **SIZES, mask_ratio=0.5)
    linear = torch.nn.Linear(SIZES["width"], len(data.class_names))
    with torch.no_grad():
        features = (
            autoencoder.features(data.normalize(data.train.pixels(torch.arange(len(data.train))))).double().numpy()
        )
        fitted = LogisticRegression(C=strength, max_iter=5000).fit(features, data.train.labels.numpy())
        weights, bias = fitted.coef_, fitted.intercept_
        if len(data.class_names) == 2:  # scikit-learn has one row for both
            weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
        linear.weight.copy_(torch.from_numpy(weights))
        linear.bias.copy_(torch.from_numpy(bias))
    trained = TrainedModel(autoencoder, linear if classifies else None, data, torch.device("cpu"))
    write_export(trained, folder, "transformers", lambda loss: "card")
    return folder
