"""Shell completion: the scripts that a shell loads, and the answers to their questions."""
