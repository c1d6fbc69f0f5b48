"""The run's report: results, plots, expectations, HTML."""
