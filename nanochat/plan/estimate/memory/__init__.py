"""Peak memory of each stage in bytes, from the shapes of its arrays and a few fitted constants."""
