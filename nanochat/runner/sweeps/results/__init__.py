"""The results of a sweep: tables, effects, plots, the report and the best recipe."""
