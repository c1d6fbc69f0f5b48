"""Tokenized documents on disk, so that later runs need not tokenize them again."""
