"""Estimates of time, memory and disk for each stage."""
