"""Generates texts whose class shows only in a few known words, to test whether a masking network finds them."""

from __future__ import annotations

import numpy as np

TOPICS = ("animal", "weather", "place", "food")
CLASSES = ("red", "green", "blue", "grey")  # of the texts, and labels of every other topic
WORDS = 8  # of a topic's label
TEXTS, WORDS_OF_TOPIC = 4000, 4
NOISE = 0.2  # share of the words drawn from their whole topic
SEED = 0


def planted_texts() -> tuple[list[str], np.ndarray]:
    """Generate texts of 16 words, 4 of each topic in turn, and their classes: int64 [N].

    A text has four labels, drawn independently and uniformly, one for each topic; its class is the label of the
    animals. The words of a topic are drawn from those of its label, or sometimes from the whole topic. So only the
    given labels distinguish the topics: their words are equally frequent, and equally predictable from the text's other
    words of the same topic. The texts are lists of words such as ``animal_red_17``, not sentences.
    """
    random = np.random.default_rng(SEED)
    labels = random.integers(len(CLASSES), size=(TEXTS, 1, len(TOPICS)))
    shape = (TEXTS, WORDS_OF_TOPIC, len(TOPICS))
    of_label = np.where(random.random(shape) < NOISE, random.integers(len(CLASSES), size=shape), labels)
    numbers = random.integers(WORDS, size=shape)
    texts = [
        " ".join(
            f"{TOPICS[index % len(TOPICS)]}_{CLASSES[label]}_{number}" for index, (label, number) in enumerate(text)
        )
        for text in np.stack([of_label, numbers], -1).reshape(TEXTS, -1, 2)
    ]
    return texts, labels[:, 0, 0]


def is_signal(word: str) -> bool:
    """Whether a word reveals the class."""
    return word.startswith(TOPICS[0])
