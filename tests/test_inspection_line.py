"""The loop of docs/inspection_line.md runs word for word."""

import json
import re
import runpy
import shlex
from pathlib import Path

from multilevel.__main__ import main
from multilevel.commands import surfaces

PAGE = (Path(__file__).parents[1] / "docs" / "inspection_line.md").read_text(encoding="utf-8")


def commands():
    """The words of each command of the first listing."""
    listing = re.search(r"((?:^    .*\n|^\n)+)\nThis is a trial", PAGE, re.M)[1].replace("\\\n", "")
    return [words for line in listing.splitlines() if (words := shlex.split(line, comments=True))]


def test_the_loop_from_pilot_to_rollback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("label.py").write_text(re.search(r"```python\n(import csv.*?)```", PAGE, re.S)[1], encoding="utf-8")
    statuses = []
    for words in commands():
        if words[:3] == ["python", "-m", "multilevel.commands.surfaces"]:
            assert surfaces.main(words[3:]) == 0
        elif words == ["python", "label.py"]:
            runpy.run_path("label.py")
            assert len(list(Path("labelled").rglob("*.png"))) == 200 + 50
        else:
            assert words[0] == "multilevel"
            statuses.append((words[1], main(words[1:])))
    names = "train export inspect promote predict monitor monitor suggest train export compare-models promote promote"
    assert [name for name, _ in statuses] == names.split()
    assert [status for _, status in statuses if status] == [4, statuses[10][1]]  # of the second monitor
    assert statuses[6] == ("monitor", 4)
    assert statuses[10][1] in (3, 4)  # not better than chance, as the page says
    assert Path("line/current").resolve() == Path("runs/pilot/export").resolve()
    history = json.loads(Path("line/current.history.json").read_text())["current_first"]
    assert len(history) == 1
    assert Path("runs/pilot/inspection.html").exists()
    assert Path("predictions.csv").read_text().splitlines()[0].startswith("file,label,probability")
