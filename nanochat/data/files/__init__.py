"""Reading local data files, choosing among them, and computing their digests."""
