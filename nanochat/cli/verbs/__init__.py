"""The verbs of `nanochat-run`, each a function of its parsed arguments."""
