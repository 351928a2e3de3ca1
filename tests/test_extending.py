"""docs/extending.md, followed word for word: its commands run, in order, and its changes made."""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
#: Commands; or a change: the file, what to replace there, and by what.
STEP = re.compile(
    r"```sh\n(?P<commands>.*?)```|In\s`(?P<file>[\w/.]+)`,\sreplace\n\n```python\n(?P<old>.*?)```\n\nby\n\n"
    r"```python\n(?P<new>.*?)```",
    re.DOTALL | re.IGNORECASE,
)


def test_the_page_can_be_followed_word_for_word(tmp_path):
    steps = list(STEP.finditer(PAGE))
    changes = sum(step["file"] is not None for step in steps)
    assert (PAGE.count("```sh\n"), PAGE.count("```python\n")) == (len(steps) - changes, 2 * changes)
    for step in steps[1:]:
        if step["file"]:
            change(tmp_path / "my_project" / step["file"], step["old"], step["new"])
        elif step["commands"]:
            follow(tmp_path, steps[0]["commands"].replace("mkdir", "mkdir -p") + step["commands"])
    assert "smallest" in (tmp_path / "my_project" / "my_run" / "summary.json").read_text()


def change(file, old, new):
    text = file.read_text()
    assert text.count(old.removesuffix("\n")) == 1, f"{file}: {old}"
    file.write_text(text.replace(old.removesuffix("\n"), new.removesuffix("\n")))


def follow(folder, commands):
    """Run commands as a shell in the folder does, the Python of these tests being the one that it finds."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    ended = subprocess.run(["bash", "-ec", commands], cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, f"{commands}\n{ended.stdout}\n{ended.stderr}"
