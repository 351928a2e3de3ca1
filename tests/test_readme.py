"""What the README says is so."""

import re
from pathlib import Path

import torch
from claims import above, below, claims

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


FIRST_SCREEN, EXAMPLE, LOGGER = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_first_screen_shows_a_graph_ten_lines_and_a_table():
    screen = README.partition("\n## ")[0]
    assert "```mermaid" in screen
    assert "\n|---|---|\n" in screen
    levels = FIRST_SCREEN.partition("\n\n\n")[2].partition("print(")[0]  # after imports and data
    assert len([line for line in levels.splitlines() if line]) == 10


def test_the_first_program_finds_the_best_penalty():
    names = {"__name__": "example"}
    exec(compile(FIRST_SCREEN, "README.md", "exec"), names)
    x, y = names["x"].double(), names["y"].double()
    gram, identity = x[:30].T @ x[:30] / 30, torch.eye(30, dtype=torch.float64)

    def validation_loss(penalty):  # of the ridge regression in closed form
        weights = torch.linalg.solve(gram + penalty * identity, x[:30].T @ y[:30] / 30)
        return (x[30:] @ weights - y[30:]).square().mean().item()

    best = min(torch.logspace(-2, 1, 3001, dtype=torch.float64).tolist(), key=validation_loss)
    assert abs(names["penalty"].exp().item() / best - 1) < 0.01
    assert f"# {best:.2f}, the best penalty" in FIRST_SCREEN


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
    names = {"__name__": "example"}
    exec(compile(LOGGER, "README.md", "exec"), names)
    names["Print"](ROOT, {}).write(3, {"mask/loss": 0.5})
    assert capsys.readouterr().out == "3 0.5\n"


def test_ci_calls_the_readmes_test_command_word_for_word():
    assert "    make test " in README
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
