"""The first rows of tables that are not converted yet."""

from __future__ import annotations

import gzip

import pytest

from nanochat.data.ingest.preview import preview


@pytest.fixture
def table(tmp_path):
    def write(content: str, name: str = "table.csv"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
        return path

    return write


@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
def test_preview_has_the_columns_and_the_first_rows(table, name):
    path = table('a;b\n"1;""x""";2\n3\n5;6\n', name)
    found = preview(path, rows=2)
    assert (found.path, found.columns, found.rows) == (path, ("a", "b"), (('1;"x"', "2"), ("3", None)))
    assert (found.rows_in_head, found.is_whole, found.problem) == (3, True, "")


def test_preview_of_a_large_file_ends_with_a_whole_row(table):
    rows = "".join(f"{i:07d},{'x' * 92}\n" for i in range(20_000))  # 101 bytes each, 2 MB
    found = preview(table(f"number,text\n{rows}"), rows=1)
    assert not found.is_whole
    assert found.rows_in_head == (2**20 - len("number,text\n")) // 101
    assert found.problem == ""


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a,a\n1,2\n", "1: the header names a column twice: 'a'"),
        ("a,b\n1,2,3\n4,5\n", "line 2: 3 values, but the header has 2"),
    ],
)
def test_preview_names_what_is_wrong(table, content, problem):
    assert preview(table(content), rows=3).problem.startswith(problem)


def test_preview_of_other_files_is_none(table):
    assert preview(table("[]", "rows.json"), rows=3) is None
