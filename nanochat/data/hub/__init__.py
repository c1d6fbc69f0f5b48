"""Data sets on the Hugging Face hub: listing, choosing and downloading their files."""
