"""The sections and fields of recipes, as Pydantic models in which every field has a description."""
