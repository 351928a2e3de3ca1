"""The comparison of one CPU thread with all."""

import re


def test_each_size_has_a_line_with_its_numbers_and_whether_that_is_small(monkeypatch, capsys):
    import cpu_threads

    monkeypatch.setattr(cpu_threads, "SIZES", [("tiny", 4, 16), ("mini", 64, 64)])
    monkeypatch.setattr(cpu_threads, "STEPS", 1)
    cpu_threads.main(["--rounds", "1", "model.depth=1", "model.decoder_depth=1", "data.limit=400"])
    found = re.findall(r"([\d,]+) numbers \((\w+); .* s a step on one thread", capsys.readouterr().out)
    assert found == [("3,072", "small"), ("1,572,864", "large")]  # 4 x 16 x 48, and 64 x 256 x 96
