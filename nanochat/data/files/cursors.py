"""Positions in a data file, from which reading resumes."""

from __future__ import annotations

Cursor = tuple[int, ...]
"""`(row group, rows into it)` in a parquet file; `(byte, line)` in a jsonl or txt file."""

START: Cursor = (0, 0)
