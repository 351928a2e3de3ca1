"""What the README says is so."""

import re
from pathlib import Path

from claims import above, below, claims

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


EXAMPLE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[1]


@claims(largest_of_the_three=below(0.5), mean_of_others_above_theirs=above(0.4))
def example(seed):
    names = {"__name__": "example"}
    exec(compile(EXAMPLE.replace("manual_seed(0)", f"manual_seed({seed})"), "README.md", "exec"), names)
    penalties = names["penalty"].weight.sigmoid().flatten()
    three, others = penalties[:3], penalties[3:]  # others may be small as well, where chance has them matter
    return {
        "largest_of_the_three": three.max().item(),
        "mean_of_others_above_theirs": (others.mean() - three.mean()).item(),
    }


def test_the_example_runs_and_finds_the_inputs_that_matter():
    assert len(EXAMPLE.strip().splitlines()) <= 25
    example.check()


def test_a_logger_of_ones_own_is_five_lines(capsys):
    code, _ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {"__name__": "example"}
    exec(compile(code, "README.md", "exec"), names)
    names["Print"](ROOT, {}).write(3, {"mask/loss": 0.5})
    assert capsys.readouterr().out == "3 0.5\n"


def test_ci_calls_the_readmes_test_command_word_for_word():
    assert "    make test " in README
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
