"""Positions in a data file, from which reading resumes."""

from __future__ import annotations

Cursor = tuple[int, ...]
"""`(row group, rows into it, bad rows)` in a parquet file; `(byte, line, bad rows)` in other files.

The byte counts in the decompressed content of a compressed file, and in the extracted text of an html file.

The last number counts the rows of the source, from its first file on, that were skipped because they cannot be read.
"""

START: Cursor = (0, 0, 0)


def next_file(cursor: Cursor) -> Cursor:
    """Return the beginning of the file after the one that ends at `cursor`."""
    return (0, 0, *cursor[2:])
