"""What a program shows on a terminal, and the signals that a terminal sends."""
