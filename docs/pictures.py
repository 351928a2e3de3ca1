"""A hook of mkdocs: pictures drawn by the program, copies of linked source files, and a check that nothing loads from
other hosts."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from multilevel.commands.graph_picture import draw_graph
from multilevel.configuration.composition import build_recipe, compose_config
from multilevel.problems import Graph
from multilevel.recipes.base import Recipe
from multilevel.runs.training import new_engine
from multilevel.study.pictures import draw_differences
from multilevel.study.statistics import compare_pairs

DOCS = Path(__file__).parent
SOURCE = re.compile(r"\]\(\.\./([\w/]+\.py)\)")  # a link from a page to a file of the program
EXTERNAL = re.compile(r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
MASK_STEPS = 40  # of the 1,000: seconds
MINIMUM_EFFECT = 0.01  # as in docs/results.md


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Draw every picture into build/pictures, and add it to the pages."""
    folder = Path(config.site_dir).parent / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    guided = recipe(f"steps={MASK_STEPS}")
    draw_graph(folder / "guided_mae.png", guided.graph)
    draw_graph(folder / "hyper_cleaning.png", recipe("recipe=hyper_cleaning").graph)
    draw_graph(folder / "three_levels.png", graph_of(DOCS / "concepts.md"))
    new_engine(guided).run(MASK_STEPS)
    guided.write_pictures(folder)  # masks.png
    draw_study(folder / "cifar10_small.png", DOCS / "results" / "cifar10_small.jsonl")
    for path in sorted(folder.glob("*.png")):
        files.append(File.generated(config, f"pictures/{path.name}", abs_src_path=str(path)))
    for name in sorted({name for page in DOCS.glob("*.md") for name in SOURCE.findall(page.read_text())}):
        text = (DOCS.parent / name).read_text()
        files.append(File.generated(config, f"source/{name}.txt", content=text))  # browsers show text, and save .py
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Lead links to files of the program to their copies in the site."""
    return SOURCE.sub(r"](source/\1.txt)", markdown)


def on_post_page(output: str, page: Any, config: MkDocsConfig) -> str:
    """Raise PluginError where a page would load something from another host."""
    found = EXTERNAL.search(output)
    if found:
        raise PluginError(f"{page.file.src_uri} loads from elsewhere: {found[0]}")
    return output


def recipe(*overrides: str) -> Recipe:
    return build_recipe(compose_config([*overrides, "device=cpu"]))


def graph_of(page: Path) -> Graph:
    """The graph that a page's program makes."""
    names: dict[str, Any] = {"__name__": page.stem}
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        with redirect_stdout(StringIO()):
            exec(compile(code, page.name, "exec"), names)
    return names["graph"]


def draw_study(path: Path, rows: Path) -> None:
    """Of a study's kept rows, the arms with all seeds: paired differences of linear-probe accuracy from the first."""
    arms: dict[str, dict[int, float]] = defaultdict(dict)
    for row in map(json.loads, rows.read_text().splitlines()):
        scores = {(protocol, labels, metric): value for protocol, labels, metric, value in row["scores"]}
        arms[row["arm"]][row["seed"]] = scores["linear_probe", "1", "accuracy"]
    baseline, *others = arms
    whole = [arm for arm in others if arms[arm].keys() == arms[baseline].keys()]
    found = [(arm, compare_pairs(arms[arm], arms[baseline], MINIMUM_EFFECT)) for arm in whole]
    comparisons = [{"arm": arm, **vars(comparison)} for arm, comparison in found]
    draw_differences(path, comparisons, MINIMUM_EFFECT, f"linear probe, less {baseline} masks (points)")
