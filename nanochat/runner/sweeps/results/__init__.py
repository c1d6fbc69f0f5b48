"""The results of a sweep: tables, effects, pictures, the report and the best recipe."""
