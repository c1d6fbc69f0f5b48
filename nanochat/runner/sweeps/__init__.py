"""Sweeps: many runs of one recipe that share what they can, their results side by side, and the best of them."""
