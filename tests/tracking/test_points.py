"""Tests of reading metric points from files that grow, end in an incomplete line, or are truncated."""

from __future__ import annotations

from nanochat.tracking.points import Point, Tail, read_points


def line(step, value):
    return f'{{"step": {step}, "metrics": {{"loss": {value}}}}}\n'


def test_tail_returns_each_line_once_when_it_is_complete(tmp_path):
    path = tmp_path / "m.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    path.write_text(line(0, 2.5) + line(1, 2.0)[:10])
    assert tail.read() == [Point(0, "loss", 2.5)]
    path.write_text(line(0, 2.5) + line(1, 2.0))
    assert tail.read() == [Point(1, "loss", 2.0)]
    assert tail.read() == []


def test_tail_reads_a_truncated_file_from_its_start(tmp_path):
    """A resumed stage truncates its file, which may then have grown past its old end."""
    path = tmp_path / "m.jsonl"
    path.write_text(line(0, 1) + line(1, 2) + line(2, 3))
    tail = Tail(path)
    tail.read()
    path.write_text(line(0, 1) + line(1, 2.75) + line(2, 3.25) + line(3, 4) + line(4, 5))
    assert [p.step for p in tail.read()] == [0, 1, 2, 3, 4]


def test_damaged_line_has_no_points(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text(line(0, 1) + '{"step": 1, "met\n' + line(2, 3))
    assert [p.step for p in read_points(path)] == [0, 2]
