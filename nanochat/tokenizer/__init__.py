"""Text to token ids and back, and conversations to ids with a loss mask. No model code."""
