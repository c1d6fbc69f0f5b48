"""The texts of a file from a cursor on, for each way in which files are read."""
