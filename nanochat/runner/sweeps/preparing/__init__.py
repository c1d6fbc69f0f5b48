"""Compiling, checking and recording a sweep before its cells run."""
