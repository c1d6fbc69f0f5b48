"""Files that survive crashes: atomic writes, the layout of run and stage folders, metric series."""
