"""The examples of README.md and docs/ work: programs run, commands have settings that exist, named files are there."""

import itertools
import re
import shlex
import textwrap
from functools import partial
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from multilevel.__main__ import COMMANDS
from multilevel.commands.evaluate import evaluation_config
from multilevel.commands.export import ExportSettings
from multilevel.commands.help import settings_of
from multilevel.compare.command import CompareSettings
from multilevel.configuration.command_line import read
from multilevel.configuration.composition import changed, compose_config, typed_settings
from multilevel.inspection.settings import InspectSettings
from multilevel.levels.masks import POLICIES
from multilevel.recipes.base import recipe_classes
from multilevel.solvers import SettingError
from multilevel.study.settings import StudySettings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Pages whose programs another test runs.
FOLLOWED = {
    "README.md": "test_readme.py",
    "extending.md": "test_extending.py",
    "from_betty.md": "test_docs.py",
    "inspection_line.md": "test_inspection_line.py",
}
RUN_HERE = [page for page in PAGES if page.name not in (*FOLLOWED, "index.md")]  # index.md has the README's
OF_THE_PROJECT = [page for page in PAGES if page.name != "extending.md"]  # which names what its reader writes
COMMAND = re.compile(r"(?:\.venv/bin/|torchrun \S.*-m )?multilevel\s+([a-z].*)", re.DOTALL)
PLACEHOLDERS = {"...", "SETTING=VALUE", "resume=RUN", "--multirun", "--help"}


def programs(page):
    blocks = re.findall(r"(<!-- from \S+ -->\n)?```python\n(.*?)```", page.read_text(), re.DOTALL)
    return [code for excerpt, code in blocks if not excerpt]


def commands(page):
    """What follows ``multilevel`` in the page's command blocks and in its text, each as a list of words."""
    text = page.read_text().replace("\\\n", " ")
    fenced = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    indented, inline = re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE), re.findall(r"`([^`]+)`", text)
    candidates = [*fenced.splitlines(), *indented, *inline]
    found = [COMMAND.fullmatch(one) for one in candidates]
    return [shlex.split(one[1], comments=True) for one in found if one]


def composes(settings):
    """Every run of a sweep, composed and checked against its recipe's settings."""
    sides = [setting.partition("=")[::2] for setting in settings]
    values = [[value] if "[" in value or "{" in value else value.split(",") for _, value in sides]
    for chosen in itertools.product(*values):
        config = compose_config([f"{name}={value}" for (name, _), value in zip(sides, chosen, strict=True)])
        typed_settings(config, recipe_classes()[config.recipe].settings_class)
        assert OmegaConf.select(config, "mask.policy") in (None, *POLICIES)


def compares(words):
    composes(CompareSettings.parsed(words).settings)


def studies(words):
    settings = StudySettings.parsed(words)
    for arm in [[], *settings.arms.values()]:
        composes([*settings.settings, *arm])


def evaluates(words):
    evaluation_config(compose_config([]), words[1:])


def exports(words):
    changed(compose_config([]), read("export", words, ExportSettings, words=True).overrides)


def has_settings(command, words):
    read(command, words, settings_of(command), words=True, recipe=False)


def inspects(words):
    read("inspect", words, InspectSettings, words=True, recipe=False).settings.check_together()


def names_recipes(words):
    assert set(words) <= {*recipe_classes(), "NAME"}


CHECKS = {
    "train": composes,
    "graph": composes,
    "compare": compares,
    "study": studies,
    "evaluate": evaluates,
    "export": exports,
    **{name: partial(has_settings, name) for name in ("predict", "monitor", "suggest", "compare-models", "promote")},
    "inspect": inspects,
    "recipes": names_recipes,
}


@pytest.mark.parametrize("page", OF_THE_PROJECT, ids=lambda page: page.name)
def test_commands_have_settings_that_exist(page):
    for command, *words in commands(page):
        assert command in COMMANDS, command
        given = [word for word in words if word not in PLACEHOLDERS]
        if command in CHECKS and not any("NAME" in word.split("=")[-1] for word in given):
            CHECKS[command](given)


def test_commands_are_found_in_blocks_continued_lines_and_text():
    found = commands(ROOT / "README.md")
    assert ["train", "resume=RUN"] in found
    assert ["compare", "resume=RUN", "warmup=1"] in found
    assert ["train", "SETTING=VALUE", "..."] in commands(ROOT / "docs" / "performance.md")
    (study,) = [one for one in commands(ROOT / "docs" / "guided_masking.md") if "policies=random" in one]
    assert "seeds=10" in study


@pytest.mark.parametrize(
    ("command", "setting"),
    [
        ("train", "solver.term=3"),
        ("compare", "neumann.term=3"),
        ("study", "arm.a=mask.polcy=topk"),
        ("evaluate", "data.pth=DIR"),
    ],
)
def test_a_setting_that_there_is_not_is_found(command, setting):
    with pytest.raises(SettingError):
        CHECKS[command](["RUN", setting] if command == "evaluate" else [setting])


@pytest.mark.parametrize("page", RUN_HERE, ids=lambda page: page.name)
def test_programs_run(page, capsys):
    names = {"__name__": "example"}
    for code in programs(page):
        exec(compile(code, page.name, "exec"), names)
    if page.name in ("concepts.md", "how_it_works.md"):  # which show what is printed
        assert textwrap.indent(capsys.readouterr().out, "    ") in page.read_text()


def test_excerpts_stand_in_the_files_that_they_are_from():
    page = (ROOT / "docs" / "how_it_works.md").read_text()
    excerpts = re.findall(r"<!-- from (\S+) -->\n```python\n(.*?)```", page, re.DOTALL)
    assert len(excerpts) == 3
    for name, excerpt in excerpts:
        lines = [line.strip() for line in (ROOT / name).read_text().splitlines()]
        wanted = [line.strip() for line in excerpt.splitlines()]
        starts = range(len(lines) - len(wanted) + 1)
        assert any(lines[start : start + len(wanted)] == wanted for start in starts), name


def test_the_walk_through_is_short_and_its_links_lead_to_files():
    text = (ROOT / "docs" / "how_it_works.md").read_text()
    assert len(text.splitlines()) <= 4 * 55  # pages of 55 lines
    links = re.findall(r"\]\((\.\./[^)#]+)\)", text)
    assert len(links) >= 10
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_the_first_page_has_the_readmes_program():
    (program,) = programs(ROOT / "docs" / "index.md")
    assert program in programs(ROOT / "README.md")


@pytest.mark.parametrize("page", OF_THE_PROJECT, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page):
    own = re.findall(r"\b((?:benchmarks|docs|problems|recipes|tests)/[\w/]+\.(?:py|md|jsonl|yaml))\b", page.read_text())
    assert [name for name in own if "NAME" not in name and not (ROOT / name).exists()] == []


def test_pages_whose_programs_this_file_leaves_out_have_a_test():
    for page, test in FOLLOWED.items():
        if (ROOT / "docs" / page).exists() or (ROOT / page).exists():
            assert page.removesuffix(".md") in (ROOT / "tests" / test).read_text()
