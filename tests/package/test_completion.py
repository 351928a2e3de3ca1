"""What the shell offers after a few letters, asked of bash itself."""

import subprocess

import pytest

from multilevel.__main__ import main
from multilevel.commands.completion import script

ASK = 'COMP_LINE="$1"; COMP_POINT=${#1}; _multilevel; printf "%s\\n" "${COMPREPLY[@]}"'


@pytest.fixture(scope="module")
def offers():
    text = script("bash")

    def ask(line, breaks=" ="):
        command = ["bash", "-c", f"COMP_WORDBREAKS='{breaks}'; {text}\n{ASK}", "bash", line]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.split()

    return ask


def test_commands_settings_and_choices_are_offered(offers):
    assert offers("multilevel eva") == ["evaluate"]
    assert offers("multilevel train levels.mask.lear") == ["levels.mask.learning_rate="]
    assert "noise=" in offers("multilevel train n")  # of another recipe
    assert offers("multilevel compare data=digits steps=3 mask.policy=to") == ["topk"]
    assert offers("multilevel recipes hyper") == ["hyper_cleaning"]
    assert offers("multilevel train nothing_of_the_kind") == []


def test_each_commands_own_settings_and_their_values_are_offered(offers):
    assert offers("multilevel compare precisions=b") == ["bf16"]
    assert offers("multilevel study equal=t") == ["time"]
    assert offers("multilevel study minimum") == ["minimum_effect="]
    assert offers("multilevel export RUN format=o", breaks=" ") == ["format=onnx"]
    assert offers("multilevel inspect EXPORT FOLDER cost.m") == ["cost.miss=", "cost.machine_hour="]
    assert offers("multilevel inspect EXPORT FOLDER language=j") == ["ja"]
    assert offers("multilevel predict EXPORT batch") == ["batch_size="]
    assert offers("multilevel train minimum") == []


def test_a_shell_that_does_not_part_words_at_the_equals_sign_gets_whole_ones(offers):
    assert offers("multilevel train solver=nys", breaks=" ") == ["solver=nystrom"]
    assert offers("multilevel train solver=nys") == ["nystrom"]


def test_the_command_prints_the_script_or_says_what_it_takes(capsys):
    assert main(["completion", "zsh"]) == 0
    assert "bashcompinit" in capsys.readouterr().out
    assert main(["completion", "fish"]) == 2
    assert "completion: got 'fish'; expected one of bash, zsh" in capsys.readouterr().err
