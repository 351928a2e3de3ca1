from __future__ import annotations

import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from multilevel.recipes.data import images as images_file
from multilevel.recipes.data.images import MemoryImages, Source, StreamedImages
from multilevel.solvers.errors import DataError


class Counted(Source):
    """Image ``n`` is grey, of value ``n``; counts how often each is opened."""

    def __init__(self, count, side=4, broken=()):
        self.labels = torch.arange(count)
        self.side = side
        self.broken = broken
        self.opened = []

    def open(self, row):
        self.opened.append(row)
        if row in self.broken:
            raise OSError("two\nlines")
        return Image.fromarray(np.full((self.side, self.side), row, dtype=np.uint8))

    def describe_row(self, row):
        return f"number {row}"


@pytest.fixture(params=[4, 200], ids=["one thread", "several threads"])
def side(request, monkeypatch):
    monkeypatch.setattr(images_file, "worker_count", lambda: 4)
    return request.param


def test_streamed_images_come_in_the_order_asked_for(side):
    pixels = StreamedImages(Counted(200, side), 4, 3).pixels(torch.tensor([7, 199, 7, 0]))
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (4, 3, 4, 4)
    assert pixels[:, 2, 1, 3].tolist() == [7, 199, 7, 0]


def test_images_in_memory_are_decoded_once(side):
    source = Counted(200, side)
    images = MemoryImages(source, 4, 1, torch.arange(50, 200))
    asked = torch.tensor([60, 199, 60, 50])
    assert images.pixels(asked)[:, 0, 0, 0].tolist() == [60, 199, 60, 50]
    source.opened.clear()
    assert images.pixels(asked)[:, 0, 0, 0].tolist() == [60, 199, 60, 50]
    assert source.opened == []
    images.prepare(torch.arange(50, 200))
    assert images.pixels(torch.arange(50, 200))[:, 0, 1, 1].tolist() == list(range(50, 200))


def test_several_threads_may_ask_at_once(side):
    images = MemoryImages(Counted(200, side), 4, 1, torch.arange(200))
    results = {}

    def ask(number):
        results[number] = images.pixels(torch.arange(number, 200))[:, 0, 0, 0].tolist()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: list(range(number, 200)) for number in range(8)}


@pytest.mark.parametrize("kind", ["memory", "streamed"])
def test_broken_image_is_named_in_one_line(side, kind):
    source = Counted(200, side, broken=[150])
    images = StreamedImages(source, 4, 1) if kind == "streamed" else MemoryImages(source, 4, 1, torch.arange(200))
    with pytest.raises(DataError, match=r"^number 150 cannot be read as an image \(OSError: two lines\)"):
        images.pixels(torch.arange(200))
    assert images.pixels(torch.tensor([3]))[0, 0, 0, 0] == 3


class Terminal:
    def __init__(self, is_terminal):
        self.is_terminal = is_terminal
        self.text = ""

    def isatty(self):
        return self.is_terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_shown_on_terminals_only(monkeypatch, is_terminal):
    stream = Terminal(is_terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    MemoryImages(Counted(20), 4, 1, torch.arange(20)).prepare(torch.arange(20))
    assert ("decoding" in stream.text) == is_terminal
