"""Reading metric points from files that grow, break off and are cut back."""

from __future__ import annotations

from nanochat.tracking.points import Point, Tail, read_points


def line(step, value):
    return f'{{"step": {step}, "metrics": {{"loss": {value}}}}}\n'


def test_a_tail_yields_each_line_once(tmp_path):
    """A second read returns only what was added."""
    path = tmp_path / "m.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    path.write_text(line(0, 2.5))
    assert tail.read() == [Point(0, "loss", 2.5)]
    path.write_text(line(0, 2.5) + line(1, 2.0))
    assert tail.read() == [Point(1, "loss", 2.0)]
    assert tail.read() == []


def test_a_half_written_line_waits_for_its_end(tmp_path):
    """The part of a line that is there is not taken for a line."""
    path = tmp_path / "m.jsonl"
    whole = line(7, 1.5)
    path.write_text(line(6, 1.0) + whole[:10])
    tail = Tail(path)
    assert [p.step for p in tail.read()] == [6]
    path.write_text(line(6, 1.0) + whole)
    assert tail.read() == [Point(7, "loss", 1.5)]


def test_a_file_cut_back_and_grown_again_is_read_anew(tmp_path):
    """A resumed stage's file is read from its beginning, even when it has grown past the old end."""
    path = tmp_path / "m.jsonl"
    path.write_text(line(0, 1) + line(1, 2) + line(2, 3))
    tail = Tail(path)
    tail.read()
    path.write_text(line(0, 1) + line(1, 2.75) + line(2, 3.25) + line(3, 4) + line(4, 5))
    assert [p.step for p in tail.read()] == [0, 1, 2, 3, 4]


def test_a_damaged_line_holds_no_points(tmp_path):
    """Garbage between whole lines is skipped."""
    path = tmp_path / "m.jsonl"
    path.write_text(line(0, 1) + '{"step": 1, "met\n' + line(2, 3))
    assert [p.step for p in read_points(path)] == [0, 2]
