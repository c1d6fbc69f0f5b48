"""Sources of documents and task rows: local files, data sets of the hub, files with an address, and built-in data."""
