"""The GPT: its configuration (without MLX), the network, its loss, and fast implementations for each device."""
