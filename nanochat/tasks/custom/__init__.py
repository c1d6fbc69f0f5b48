"""Tasks that a user defines: questions with a rule for grading, and classes in Python."""
