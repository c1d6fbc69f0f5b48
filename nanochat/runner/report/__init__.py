"""The report of a run: results, scores, plots, expectations, as markdown and HTML."""
