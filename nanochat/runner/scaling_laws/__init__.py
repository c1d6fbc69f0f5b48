"""How loss depends on model size, training tokens and compute, fitted to the results of many runs."""
