"""Estimates the time, memory and disk of each stage."""
