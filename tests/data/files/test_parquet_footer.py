"""Tests that the column names in a parquet file's footer are read as pyarrow reads them."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data.files.formats.parquet_footer import column_paths, count_rows

TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(pa.struct([("type", pa.string())])))]))
TABLE = pa.table(
    {
        "messages": pa.array([[{"role": "user", "content": [{"type": "text"}]}]], TURNS),
        "été": [1.5],
        "when": pa.array([1], pa.timestamp("us", tz="UTC")),
        "price": pa.array([Decimal("1.25")], pa.decimal128(10, 2)),
        "counts": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        "small": pa.array([1], pa.uint8()),
        "day": pa.array([1], pa.date32()),
        **{f"column_{i}": [True] for i in range(200)},
    }
)


@pytest.mark.parametrize("options", [{}, {"version": "1.0"}, {"use_compliant_nested_type": False}])
def test_column_paths_are_those_of_pyarrow(tmp_path, options):
    path = tmp_path / "a.parquet"
    pq.write_table(TABLE, path, **options)
    schema = pq.ParquetFile(path).schema
    assert [".".join(names) for names in column_paths(path)] == [schema.column(i).path for i in range(len(schema))]


@pytest.mark.parametrize("rows", [0, 1, 300])
def test_count_rows_is_that_of_pyarrow(tmp_path, rows):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x"] * rows}), path, row_group_size=128)
    assert count_rows(path) == rows


@pytest.mark.parametrize("content", [b"", b"PAR1", b"text" * 10, b"\x00" * 20 + b"\x09\x00\x00\x00PAR1"])
def test_column_paths_of_a_damaged_file_are_refused(tmp_path, content):
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="parquet footer"):
        column_paths(path)


def test_column_paths_of_a_cut_footer_are_refused_or_complete(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(TABLE.select(["messages", "when"]), path)
    whole, expected = path.read_bytes(), column_paths(path)
    length = int.from_bytes(whole[-8:-4], "little")
    outcomes = []
    for kept in range(length):
        footer = whole[-8 - length : -8][:kept]
        path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
        try:
            outcomes.append(column_paths(path) == expected)
        except ValueError:
            outcomes.append(False)
    assert outcomes == sorted(outcomes)
    assert not outcomes[100]
