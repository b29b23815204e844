"""Habits of a run that are not the model: streaming validation, pictures, tables."""
