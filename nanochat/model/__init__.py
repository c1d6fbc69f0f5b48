"""The GPT: its configuration (free of MLX), layers and loss."""
