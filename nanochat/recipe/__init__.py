"""What a user may write, and the only reader of YAML."""
