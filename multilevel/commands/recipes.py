"""multilevel recipes [NAME ...]: list the recipes, or describe those named

For each NAME: what the recipe learns, the published result it follows, and the result here with its command. The
command python -m multilevel.commands.recipes prints docs/recipes.md.

  multilevel recipes hyper_cleaning
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Sequence

from multilevel.recipes.base import Recipe, recipe_class, recipe_classes

TITLE = """# Recipes

Each is one file in `recipes/` and one in `recipes/config/recipe/`; `multilevel train recipe=NAME` trains it on its
default data, and `multilevel graph recipe=NAME` shows its levels. This page is generated from the docstrings by
`python -m multilevel.commands.recipes > docs/recipes.md`."""


def main(arguments: Sequence[str]) -> int:
    """Print a line for each recipe, or the whole text of those named."""
    chosen = [(name, recipe_class(name, "recipes")) for name in arguments]
    if chosen:
        print("\n\n".join(f"{name}\n\n{text(recipe)}" for name, recipe in chosen))
    else:
        print("\n".join(f"{name:<22}{summary(recipe)}" for name, recipe in recipe_classes().items()))
    return 0


def text(recipe: type[Recipe]) -> str:
    """A recipe's docstring: what it learns, the published result it follows (``Follows:``), and the result here with
    its command (``Result:``). The project's own recipes have all three."""
    docstring = (inspect.getdoc(importlib.import_module(recipe.__module__)) or "").removeprefix("Recipe:").strip()
    return docstring[:1].upper() + docstring[1:]


def summary(recipe: type[Recipe]) -> str:
    """The first sentence on one line."""
    return " ".join(re.split(r"\n\n|(?<=\.)\n", text(recipe))[0].split())


def page() -> str:
    """Generate docs/recipes.md.

    Raises:
        ValueError: a docstring has no ``Follows:`` or ``Result:``.
    """
    recipes = recipe_classes()
    for recipe in recipes.values():
        missing = [word for word in ("Follows:", "Result:") if f"\n{word}" not in text(recipe)]
        if missing:
            raise ValueError(f"the docstring of {recipe.__module__} has no line '{missing[0]} ...'")
    parts = [TITLE, *(f"## {name}\n\n{text(recipe).replace('``', '`')}" for name, recipe in recipes.items())]
    return re.sub(r"\bdocs/(\w+)\.md(?!`)", r"[\1](\1.md)", "\n\n".join(parts)) + "\n"


if __name__ == "__main__":
    print(page(), end="")
