"""Sources of text and task data, and how they become rows of training batches."""
