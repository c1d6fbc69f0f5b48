"""Tokenized documents on disk, so that a second run does not tokenize again."""
