"""Large grey pictures: an uneven surface with noise and, in defective ones, a small pit next to a corner."""

import numpy as np
from PIL import Image

SIZE = 512
PIT = 14  # pixels of its side
MARGIN = 4  # most pixels between a pit and the two edges of its corner


def surface(random, width=SIZE, height=SIZE):
    coarse = Image.fromarray(random.normal(128, 6, (6, 6)).astype(np.float32))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return smooth + random.normal(0, 6, (height, width)).astype(np.float32)


def pit(random, pixels, depth=70):
    """Darken a square next to a random corner, and return its mask."""
    ends = np.array(pixels.shape) - PIT
    near = random.integers(0, MARGIN + 1, 2)
    row, column = np.where(random.integers(0, 2, 2), near, ends - near)
    mask = np.zeros(pixels.shape, dtype=np.uint8)
    mask[row : row + PIT, column : column + PIT] = 255
    pixels[mask > 0] -= depth
    return mask


def write_large_pictures(folder, counts, seed=0, masks=False, width=SIZE, height=SIZE):
    """A folder for each class, of which ``pitted`` has defects, and on request masks in ``masks/pitted``."""
    random = np.random.default_rng(seed)
    for kind, count in counts.items():
        (folder / kind).mkdir(parents=True)
        for number in range(count):
            pixels = surface(random, width, height)
            mask = pit(random, pixels) if kind == "pitted" else None
            name = f"{kind}/{number:03d}.pgm"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
            if masks and mask is not None:
                (folder / "masks" / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(folder / "masks" / name)
    return folder
