"""Where documents come from and how they become training rows."""
