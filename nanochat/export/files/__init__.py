"""Files that are copied into exported folders. Nothing here is imported by nanochat: other programs run them."""
