"""multilevel completion bash|zsh: print a script that completes commands, settings and choices

Into ~/.bashrc or ~/.zshrc:

  eval "$(multilevel completion bash)"

or, since printing takes seconds, write it to a file once and source that: multilevel completion bash > FILE
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import OmegaConf

from multilevel.commands.help import settings_of
from multilevel.commands.overview import COMMANDS
from multilevel.configuration.command_line import settable
from multilevel.configuration.composition import choices, compose_config, named_settings
from multilevel.levels.masks import POLICIES
from multilevel.recipes.base import recipe_classes
from multilevel.solvers import SettingError
from multilevel.solvers.ranges import choices_of

SHELLS = ("bash", "zsh")
CONFIGURED = ("train", "compare", "study", "graph")  # the commands that take a recipe's settings

SCRIPT = r"""
_multilevel() {
    local line="${COMP_LINE:0:$COMP_POINT}" words
    local word="${line##* }"
    case "$line" in
        *" "*" "*) case "$line" in
CASES
        esac ;;
        *) words="COMMANDS" ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    # where the shell breaks words at "=", complete only the part after it
    if [[ "$COMP_WORDBREAKS" == *=* && "$word" == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%=*}="}")
    fi
    if [[ "${COMPREPLY[0]}" == *= ]]; then compopt -o nospace 2>/dev/null; fi
}
complete -o default -F _multilevel multilevel
"""


def main(arguments: Sequence[str]) -> int:
    """Print a script for a shell."""
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        raise SettingError("completion", " ".join(arguments) or None, f"one of {', '.join(SHELLS)}")
    print(script(arguments[0]))
    return 0


def script(shell: str) -> str:
    """The script that ``eval "$(multilevel completion bash)"`` evaluates, with the current settings."""
    offers = {command: list(own_words(settings_of(command))) for command in COMMANDS}
    offers["recipes"] = list(recipe_classes())
    configured = list(words())
    for command in CONFIGURED:
        offers[command] += configured
    cases = [
        f'            "multilevel {name} "*) words="{" ".join(dict.fromkeys(offer))}" ;;'
        for name, offer in offers.items()
    ]
    filled = SCRIPT.replace("CASES", "\n".join(cases)).replace("COMMANDS", " ".join(COMMANDS))
    return "autoload -U +X bashcompinit && bashcompinit" + filled if shell == "zsh" else filled.strip()


def own_words(settings_class: Any) -> Iterator[str]:
    """Every setting that a dataclass declares, ``SETTING=``, and every value of one that has choices."""
    for name, kind in settable(settings_class).items():
        yield f"{name}="
        yield from (f"{name}={choice}" for choice in choices_of(kind))


def words() -> Iterator[str]:
    """Every setting, ``SETTING=``, of any recipe, and every choice, ``GROUP=NAME``."""
    for group in ("recipe", "data", "model", "task", "experiment", "solver"):
        yield from (f"{group}={name}" for name in choices(group))
    yield from (f"mask.policy={name}" for name in POLICIES)
    configs = [OmegaConf.to_container(compose_config([f"recipe={recipe}"])) for recipe in recipe_classes()]
    yield from dict.fromkeys(f"{name}=" for config in configs for name, _ in named_settings(config))
