"""Command lines: arguments become calls, errors become exit codes."""
