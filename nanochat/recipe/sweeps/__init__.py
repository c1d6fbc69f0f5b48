"""Turns a recipe with a section `sweep` into the recipes of its cells."""
