"""The profile of an iteration at tiny sizes."""

import time

import pytest


@pytest.fixture
def profile_step():
    import profile_step

    return profile_step


def test_no_moment_is_counted_twice(profile_step):
    ledger = profile_step.Ledger("wall")
    start = time.perf_counter()
    ledger.start()
    with ledger.within(("mask", None)):
        time.sleep(0.02)
        with ledger.within((None, "backward")):
            time.sleep(0.03)
            with ledger.within(("pretrain", None)):
                time.sleep(0.01)
    spent = ledger.stop()
    assert spent["mask", profile_step.REST] >= 0.02
    assert spent["mask", "backward"] >= 0.03
    assert spent["pretrain", profile_step.REST] >= 0.01
    assert sum(spent.values()) <= time.perf_counter() - start


def test_the_table_has_every_phase_of_each_side(profile_step, tiny, capsys, monkeypatch):
    for owner, name, _ in profile_step.WATCHED:  # put back after the test
        monkeypatch.setattr(owner, name, owner.__dict__[name])
    generated = "data=planted data.channels=3".split()
    profile_step.main(["--rounds", "1", "--operators", "3", *generated, *tiny])
    text = capsys.readouterr().out
    lines = text.splitlines()
    phases = [
        line for line in lines if line[:1].strip() and line.startswith(("pretrain", "finetune", "mask", "product"))
    ]
    shares = {line[:34].strip(): line[34:].split() for line in phases}
    assert list(shares) == ["pretrain", "finetune", "mask", "product at finetune", "product at pretrain"]
    plain, direct, both = (index for index in (0, 2, 4))
    products = [
        [float(shares[f"product at {level}"][side]) > 0 for side in (plain, direct, both)]
        for level in ("finetune", "pretrain")
    ]
    assert products == [[False, False, True], [False, True, True]]
    assert "aten::" in text
