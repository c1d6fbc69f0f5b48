"""The recipe's fields: Pydantic models with a description of every field."""
