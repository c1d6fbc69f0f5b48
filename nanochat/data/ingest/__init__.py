"""Converting data files that cannot be read from an exact position, such as csv and json, into parquet files."""
