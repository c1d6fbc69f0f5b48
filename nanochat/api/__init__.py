"""nanochat as a library: recipes, runs and models from Python and notebooks. `import nanochat` offers these names.

Everything here is public, and `tests/api/test_surface.py` freezes it. Everything outside of this folder may change.
"""
