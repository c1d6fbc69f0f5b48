"""Output on a terminal, and the signals that a terminal sends."""
