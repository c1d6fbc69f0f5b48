"""Compiles a validated recipe into a plan: stage specifications, fingerprints and estimates. Pure, and without MLX."""
