"""Data sets of the Hugging Face hub: listing and downloading their files, and pinning their commits."""
