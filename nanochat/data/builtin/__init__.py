"""Text and words that every installation carries: the standard library's source, and a word list."""
