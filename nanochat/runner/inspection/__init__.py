"""Looking at the data of a recipe before training on it: how much there is, of what kind, and what it looks like."""
