"""Derives stage specifications, with all their numbers, from the sections of a recipe."""
