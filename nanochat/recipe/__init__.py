"""Recipes: the schema, the YAML reader, `extends`, `--set` and variables, and checks with located error messages."""
