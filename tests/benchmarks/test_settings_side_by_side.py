"""What settings save and cost, at tiny sizes."""

import re


def test_checkpointing_is_compared_with_going_without(tiny, capsys):
    import checkpointing

    checkpointing.main(["--rounds", "1", "--solvers", "identity product=reverse", "--", "data=digits", *tiny])
    (line,) = capsys.readouterr().out.splitlines()[1:]
    found = re.fullmatch(
        r"identity product=reverse: \d+ MiB without, \d+ MiB with \([\d.]+x\); [\d.]+ s without, [\d.]+x with; "
        r"relative difference (\S+)",
        line,
    )
    assert float(found[1]) < 1e-5


def test_compiled_steps_are_timed_beside_plain_ones(tiny, capsys):
    """The plain side alone, which compiles nothing."""
    import compiled_steps

    compiled_steps.main(["--rounds", "1", "--sides", "plain", "--precisions", "float32,bf16", "data=digits", *tiny])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [["plain", "float32"], ["plain", "bf16"]]
    assert all(re.search(r"\d\.\d\d s$", line) for line in lines)
