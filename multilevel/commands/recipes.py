"""multilevel recipes [NAME ...]: what can be trained, a line each, or all about some

Of a recipe that is named: what it learns, the published result that it follows, and its own with the command.
``python -m multilevel.commands.recipes`` prints docs/recipes.md.

  multilevel recipes hyper_cleaning
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Sequence

from multilevel.recipes.base import Recipe, recipe_class, recipe_classes

TITLE = """# Recipes

Each is one file in `recipes/` and one in `recipes/config/recipe/`; `multilevel train recipe=NAME` runs it on data that
comes with it, `multilevel graph recipe=NAME` shows its levels. Made from the docstrings by
`python -m multilevel.commands.recipes > docs/recipes.md`."""


def main(arguments: Sequence[str]) -> int:
    """A line for each recipe, or the whole text of some."""
    chosen = [(name, recipe_class(name, "recipes")) for name in arguments]
    if chosen:
        print("\n\n".join(f"{name}\n\n{text(recipe)}" for name, recipe in chosen))
    else:
        print("\n".join(f"{name:<22}{summary(recipe)}" for name, recipe in recipe_classes().items()))
    return 0


def text(recipe: type[Recipe]) -> str:
    """A recipe's docstring: what it learns, the published result that it follows (``Follows:``), and its own
    with the command (``Result:``); the project's own say all three."""
    docstring = (inspect.getdoc(importlib.import_module(recipe.__module__)) or "").removeprefix("Recipe:").strip()
    return docstring[:1].upper() + docstring[1:]


def summary(recipe: type[Recipe]) -> str:
    """The first sentence, on one line."""
    return " ".join(re.split(r"\n\n|(?<=\.)\n", text(recipe))[0].split())


def page() -> str:
    """docs/recipes.md.

    Raises:
        ValueError: a recipe does not say what it follows, or its result.
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
