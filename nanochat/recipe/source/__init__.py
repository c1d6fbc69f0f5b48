"""Reading YAML with the position of every value, and showing errors in the source text."""
