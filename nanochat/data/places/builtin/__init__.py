"""Data that every installation has: the standard library's source, and a word list."""
