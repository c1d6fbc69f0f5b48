"""Running the cells of a sweep, here, on other hosts and under a scheduler."""
