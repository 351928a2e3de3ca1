"""promote: the link is moved in one step, three earlier models are kept, and only exports are promoted."""

import json
import os
import shutil
import threading

import pytest
import torch
from exports import write_model, write_pictures

from multilevel.__main__ import main
from multilevel.commands import promote
from multilevel.recipes.export import ExportedModel


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Five exports, 0 to 4; 1 has other classes than 0."""
    root = tmp_path_factory.mktemp("promote")
    images = {
        0: write_pictures(root / "images", {"good": 8, "dent": 8}),
        1: write_pictures(root / "more", {"good": 8, "dent": 8, "burr": 8}),
    }
    for number in range(5):
        write_model(root / str(number), images[number % 2], seed=number)
    return root


def identity(folder):
    return ExportedModel(folder, torch.device("cpu")).identity


def test_promote_and_roll_back_three_times(models, tmp_path, capsys):
    link = tmp_path / "line" / "current"
    for number in range(5):
        assert main(["promote", str(models / str(number)), f"link={link}"]) == 0
        assert link.resolve() == models / str(number)
    assert not os.path.isabs(os.readlink(link))
    entries = json.loads((tmp_path / "line" / "current.history.json").read_text())["current_first"]
    assert [entry["identity"] for entry in entries] == [identity(models / str(number)) for number in (4, 3, 2, 1)]
    for number in (3, 2, 1):
        assert main(["promote", "rollback=true", f"link={link}"]) == 0
        assert link.resolve() == models / str(number)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{link} leads to ")
    assert said[-1].endswith("; 0 earlier models left")
    assert main(["promote", "rollback=true", f"link={link}"]) == 2
    assert "expected a link with an earlier model in current.history.json" in capsys.readouterr().err
    assert sorted(path.name for path in link.parent.iterdir()) == ["current", "current.history.json"]


def test_the_same_model_again_changes_nothing(models, tmp_path, capsys):
    link = tmp_path / "current"
    for _ in range(2):
        assert main(["promote", str(models / "0"), f"link={link}"]) == 0
    assert "already leads to" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "current.history.json").read_text())["current_first"]) == 1


def test_a_reader_of_a_moving_link_gets_one_model_whole(models, tmp_path):
    link = tmp_path / "current"
    promote.promote(link, [], models / "0")
    whole = {
        identity(models / str(number)): ExportedModel(models / str(number), torch.device("cpu")) for number in (0, 1)
    }
    done = threading.Event()

    def keep_moving():
        while not done.is_set():
            for number in (1, 0):
                promote.move(link, [promote.Promoted(str(models / str(number)), "", "")])

    mover = threading.Thread(target=keep_moving)
    mover.start()
    try:
        seen = [ExportedModel(link, torch.device("cpu")) for _ in range(60)]
    finally:
        done.set()
        mover.join()
    for model in seen:
        assert model.class_names == whole[model.identity].class_names
    assert {model.identity for model in seen} == whole.keys()


def test_a_model_that_was_overwritten_is_not_rolled_back_to(models, tmp_path, capsys):
    shutil.copytree(models / "0", tmp_path / "a")
    link = tmp_path / "current"
    for folder in (tmp_path / "a", models / "1"):
        assert main(["promote", str(folder), f"link={link}"]) == 0
    shutil.rmtree(tmp_path / "a")
    shutil.copytree(models / "2", tmp_path / "a")
    before = (tmp_path / "current.history.json").read_text()
    assert main(["promote", "rollback=true", f"link={link}"]) == 2
    assert f"the folder holds another one ({identity(models / '2')}) now" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "a")
    assert main(["promote", "rollback=true", f"link={link}"]) == 2
    assert "expected a folder written by multilevel export" in capsys.readouterr().err
    assert (link.resolve(), (tmp_path / "current.history.json").read_text()) == (models / "1", before)


def test_a_promotion_that_was_cut_off_is_not_in_the_history(models, tmp_path, monkeypatch):
    link = tmp_path / "current"
    for number in (0, 1):
        assert main(["promote", str(models / str(number)), f"link={link}"]) == 0
    with monkeypatch.context() as context:
        context.setattr(promote.Path, "symlink_to", lambda *arguments, **keywords: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(["promote", str(models / "2"), f"link={link}"])
    assert [entry.identity for entry in promote.history(link)] == [identity(models / name) for name in ("1", "0")]
    assert main(["promote", "rollback=true", f"link={link}"]) == 0
    assert link.resolve() == models / "0"


def test_a_link_moved_by_hand_is_kept_for_a_rollback(models, tmp_path):
    link = tmp_path / "current"
    link.symlink_to(models / "0")
    assert main(["promote", str(models / "1"), f"link={link}"]) == 0
    assert main(["promote", "rollback=true", f"link={link}"]) == 0
    assert link.resolve() == models / "0"


WRONG = [
    ([], "one exported folder, or rollback=true without one: multilevel promote EXPORT"),
    (["{m}/0", "rollback=true"], "one exported folder, or rollback=true without one"),
    (["{m}/images"], "EXPORT: got '{m}/images'; expected a folder written by multilevel export"),
    (["{m}/none"], "EXPORT: got '{m}/none'"),
    (["{m}/0", "link={m}/1"], "link: got '{m}/1'; expected a symbolic link, or a name that is not taken"),
    (["rollback=true"], "rollback: got True; expected a link with an earlier model"),
    (["{m}/0", "lnk=a"], "lnk: got 'a'; expected a setting of promote: link, rollback"),
]


@pytest.mark.parametrize(("words", "text"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_wrong_input_is_one_line(models, words, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["promote", *(word.replace("{m}", str(models)) for word in words)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert text.replace("{m}", str(models)) in lines[0]
    assert list(tmp_path.iterdir()) == []
