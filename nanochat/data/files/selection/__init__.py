"""Which files a source has, and which of them are read."""
