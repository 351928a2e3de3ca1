"""Characters that the pictures' font lacks come from another font, or are escaped and told; nothing is a box."""

import ast
import warnings
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager, get_data_path, rcParams
from PIL import Image
from test_architecture import MODULES

from multilevel.recipes.pictures import fonts
from multilevel.recipes.pictures.figures import STYLE, new_figure, save_figure, styled

NAMES = "\u826f\u54c1"  # good part


def square():
    pen = TTGlyphPen(None)
    pen.moveTo((50, 0))
    for corner in ((950, 0), (950, 900), (50, 900)):
        pen.lineTo(corner)
    pen.closePath()
    return pen.glyph()


def write_font(path, characters):
    """A font of filled squares."""
    names = [".notdef", *(f"c{ord(character)}" for character in characters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(character): name for character, name in zip(characters, names[1:], strict=True)})
    builder.setupGlyf({name: square() for name in names})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 50)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2(usWeightClass=400)
    builder.setupPost()
    builder.save(path)


@pytest.fixture
def only(monkeypatch):
    """Pretends that the machine has matplotlib's fonts and some files."""

    def pretend(*files):
        own = Path(get_data_path())
        monkeypatch.setattr(
            font_manager.fontManager,
            "ttflist",
            [entry for entry in font_manager.fontManager.ttflist if Path(entry.fname).is_relative_to(own)],
        )
        monkeypatch.setattr(fonts, "findSystemFonts", lambda: [str(file) for file in files])
        fonts.fonts_for.cache_clear()
        fonts._tell.cache_clear()

    yield pretend
    fonts.fonts_for.cache_clear()


@styled
def draw(path, name):
    figure = new_figure(4, 3)
    axis = figure.subplots()
    axis.bar([0, 1], [1, 2])
    axis.set_xticks([0, 1], [name, "ok"])
    axis.set_title(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as by a glyph that is missing
        save_figure(figure, path)
    return [axis.get_title(loc="left"), axis.get_xticklabels()[0].get_text()]


def test_without_a_font_names_are_escaped_and_one_line_says_so(tmp_path, only, capsys):
    only()
    for _ in range(2):
        assert draw(tmp_path / "a.png", NAMES) == ["\\u826f\\u54c1"] * 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"no installed font has the characters {NAMES[1]} {NAMES[0]}: ")
    assert "\\u54c1" in line
    assert "install a font" in line


def test_an_installed_font_writes_the_names(tmp_path, only, capsys):
    write_font(tmp_path / "Squares.ttf", NAMES)
    only(tmp_path / "Squares.ttf")
    assert draw(tmp_path / "a.png", NAMES) == [NAMES] * 2
    assert capsys.readouterr().err == ""
    with Image.open(tmp_path / "a.png") as picture:
        dark = np.asarray(picture.convert("L")) < 100
    assert dark[:30].mean() > 0.01  # two filled squares as the title, of 18 x 16 pixels each
    assert fonts.fonts_for(frozenset(NAMES)) == (("Squares",), frozenset())


def test_what_no_font_has_is_escaped_alone(tmp_path, only, capsys):
    write_font(tmp_path / "Half.ttf", NAMES[:1])
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    only(tmp_path / "Half.ttf", tmp_path / "broken.ttf")
    assert draw(tmp_path / "a.png", NAMES) == [NAMES[0] + "\\u54c1"] * 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_bytes_that_are_no_characters_are_escaped(tmp_path, only):
    only()
    assert draw(tmp_path / "a.png", "part\udc80") == ["part\\udc80"] * 2


def test_usual_texts_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(fonts, "fonts_for", lambda characters: pytest.fail("looked for fonts"))
    draw(tmp_path / "a.png", "10\u207b\u00b3 caf\u00e9 \u2026")


def test_every_function_that_makes_a_figure_is_styled_and_the_style_ends_with_it(tmp_path):
    makers = 0
    for path in MODULES.values():
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef) and any(
                isinstance(node, ast.Call) and getattr(node.func, "id", None) == "new_figure"
                for node in ast.walk(function)
            ):
                makers += 1
                assert [name.id for name in function.decorator_list if isinstance(name, ast.Name)] == ["styled"], path
    assert makers >= 10
    before = dict(rcParams)
    draw(tmp_path / "a.png", "ok")
    assert dict(rcParams) == before
    assert before["axes.spines.top"] != STYLE["axes.spines.top"]
