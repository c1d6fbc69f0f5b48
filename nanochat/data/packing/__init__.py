"""Packing documents or conversations into rows of fixed length."""
