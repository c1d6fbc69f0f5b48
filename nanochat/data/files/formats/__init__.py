"""Reading one format each: JSON lines, parquet, HTML, and compressed streams, from exact positions."""
