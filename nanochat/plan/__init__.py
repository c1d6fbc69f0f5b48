"""From a validated recipe to a plan: derived numbers, stage specifications, fingerprints, estimates. Pure; no MLX."""
