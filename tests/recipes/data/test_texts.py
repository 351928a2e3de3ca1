"""Texts as numbers: generated ones, whose class nothing but the animals tells, and files of one's own."""

import json

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from multilevel.levels.models.masked_language_model import PADDING, SPECIAL, UNKNOWN
from multilevel.recipes.texts.planted import CLASSES, TOPICS, is_signal, planted_texts
from multilevel.recipes.texts.texts import TextSettings, load_texts
from multilevel.solvers import DataError, SettingError


def settings(**changed):
    own = {"name": "own", "path": None, "text_column": "text", "label_column": "label", "length": 16}
    sizes = {"vocabulary": 5000, "batch_size": 8, "mask_share": 0.2, "test_share": 0.25, "split_seed": 0}
    return TextSettings(**{**own, **sizes, **changed})


def test_planted_words_of_every_topic_are_alike_and_those_of_animals_alone_tell_the_class():
    texts, labels = planted_texts()
    words = [text.split() for text in texts]
    for place, topic in enumerate(TOPICS):
        assert all(word.startswith(topic) for text in words for word in text[place :: len(TOPICS)])
    kinds = torch.tensor([[CLASSES.index(word.split("_")[1]) for word in text] for text in words])
    counts = torch.nn.functional.one_hot(kinds, len(CLASSES)).reshape(len(words), -1, len(TOPICS), len(CLASSES)).sum(1)
    half = len(words) // 2
    for place in range(len(TOPICS)):
        seen = counts[:, place].numpy()
        accuracy = LogisticRegression().fit(seen[:half], labels[:half]).score(seen[half:], labels[half:])
        assert accuracy > 0.95 if place == 0 else accuracy < 0.3
        # 4 words, each of the text's label with 0.8 + 0.2 / 4: how often all are
        agree = float((counts[:, place].max(-1).values == 4).double().mean())
        assert abs(agree - (0.85**4 + 3 * 0.05**4)) < 0.03


def test_planted_texts_are_divided_and_their_signal_is_known():
    data = load_texts(settings(name="planted_text"))
    assert [len(part.labels) for part in (data.train, data.mask, data.test)] == [2400, 600, 1000]
    assert all(part.words.min() >= SPECIAL for part in (data.train, data.mask, data.test))
    assert data.signal.sum() == sum(is_signal(word) for word in data.vocabulary) == len(data.vocabulary) // 4
    assert data.signal[data.test.words].double().mean() == 0.25


ROWS = [("The cat, the DOG and a bird.", "pet")] * 5 + [("Rain!", "weather")] * 5


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_file_of_ones_own_is_read(suffix, tmp_path):
    path = tmp_path / f"own{suffix}"
    if suffix == ".csv":
        path.write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in ROWS))
    else:
        path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS))
    data = load_texts(settings(path=str(path), length=6, vocabulary=3))
    assert data.class_names == ("pet", "weather")
    assert data.vocabulary[0] == "the"
    assert data.words == SPECIAL + 3
    assert data.signal is None
    assert [len(part.labels) for part in (data.train, data.mask, data.test)] == [6, 2, 2]
    (pet,), (rain,) = data.test.words[data.test.labels == 0], data.test.words[data.test.labels == 1]
    assert pet[0] == pet[2] == SPECIAL  # "the", in either case
    assert (pet == UNKNOWN).sum() == 6 - 2 - sum(word in data.vocabulary for word in ("cat", "dog", "and", "a"))
    assert rain[1:].tolist() == [PADDING] * 5


@pytest.mark.parametrize(
    ("text", "changed", "expected"),
    [
        ("text,label\na,1\n", {"text_column": "words"}, r"data\.text_column: got 'words'; expected one of text, label"),
        ("text,label\na,1\n", {"label_column": "class"}, r"data\.label_column: got 'class'; expected one of text"),
        ("text,label\n?,1\na,1\na,1\n", {}, "row 0 of .* has no word in column 'text'"),
        ("text,label\na,1\na,1\na,1\nb,2\n", {}, "expected at least 3 texts of every class"),
        ("text,label\na,\nb,2\n", {}, "row 0 of .* has no label in column 'label'"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(text, changed, expected, tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(text)
    with pytest.raises((SettingError, DataError), match=expected):
        load_texts(settings(path=str(path), **changed))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"path": "none.csv"}, "data.path: got 'none.csv'; expected a file that ends in .csv, .json"),
        ({"length": 1}, "data.length: got 1"),
        ({"vocabulary": 0}, "data.vocabulary: got 0"),
        ({"test_share": 1.0}, "data.test_share: got 1.0; expected a share above 0 and below 1"),
    ],
)
def test_a_setting_that_cannot_work_is_named(changed, expected):
    with pytest.raises(SettingError) as error:
        load_texts(settings(**changed))
    assert expected in str(error.value)
