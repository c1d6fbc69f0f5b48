"""Tests that the separator of csv files is recognised, and that every cell stays as it is with each of them."""

from __future__ import annotations

import codecs
import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.files.readers import read_rows
from nanochat.data.ingest.convert import convert
from nanochat.data.ingest.csv_rows import csv_rows
from nanochat.data.ingest.store import readable_files
from nanochat.errors import PreflightError

ROWS = [{"text": "one; two, three\tfour|five", "id": "1"}, {"text": 'six "seven"\nü', "id": ""}]


def converted(path, base):
    convert(path, base=base)
    return [values for file in readable_files([path], base=base) for _, values in read_rows(file)]


def csv_text(rows, separator, **options):
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=separator, **options)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_separator_of_a_csv_file_is_that_of_its_header(tmp_path, separator, quoting):
    (tmp_path / "a.csv").write_text(csv_text(ROWS, separator, quoting=quoting), encoding="utf-8", newline="")
    assert converted(tmp_path / "a.csv", tmp_path / "base") == ROWS


@pytest.mark.parametrize("mark", [codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE])
@pytest.mark.parametrize(("name", "separator"), [("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t")])
def test_tables_as_spreadsheets_save_them_are_read(tmp_path, mark, name, separator):
    encodings = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
    (tmp_path / name).write_bytes(mark + csv_text(ROWS, separator).encode(encodings[mark]))
    assert converted(tmp_path / name, tmp_path / "base") == ROWS


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("text\na\n", [{"text": "a"}]),
        ("text\na; b\n", [{"text": "a; b"}]),
        ('"text; or, both"\na\n', [{"text; or, both": "a"}]),
        ("id,text (a|b)\n1,x\n2,y|z\n", [{"id": "1", "text (a|b)": "x"}, {"id": "2", "text (a|b)": "y|z"}]),
        ("id;text, long\n1;x\n2;y\n", [{"id": "1", "text, long": "x"}, {"id": "2", "text, long": "y"}]),
    ],
)
def test_separator_that_the_header_leaves_open_is_that_of_the_rows(tmp_path, content, rows):
    (tmp_path / "a.csv").write_text(content)
    assert converted(tmp_path / "a.csv", tmp_path / "base") == rows


def test_header_that_two_separators_fit_is_refused_with_a_remedy(tmp_path):
    (tmp_path / "a.csv").write_text("text;id,n\na;b,c\n")
    with pytest.raises(PreflightError, match=r"a\.csv:1: the fields may be separated by `,` or `;`; name the columns"):
        convert(tmp_path / "a.csv", base=tmp_path / "base")


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@settings(max_examples=30)
@given(st.lists(st.lists(cells, min_size=2, max_size=2), min_size=1, max_size=6), st.sampled_from(",;\t|"))
def test_csv_rows_are_those_that_the_csv_module_wrote(tmp_path_factory, rows, separator):
    """The place of each row is the line in which it begins."""
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    file, expected, lines = io.StringIO(), [], []
    writer = csv.writer(file, delimiter=separator)
    writer.writerow(["text", "id"])
    for row in rows:
        lines.append(len(io.StringIO(file.getvalue(), newline="").readlines()) + 1)
        writer.writerow(row)
        expected.append(dict(zip(("text", "id"), row, strict=True)))
    path.write_text(file.getvalue(), encoding="utf-8", newline="")
    found = list(csv_rows(path, ".csv"))
    assert [row.values for row in found] == expected and not any(row.problem for row in found)
    assert [row.place for row in found] == [f":{line}" for line in lines]
