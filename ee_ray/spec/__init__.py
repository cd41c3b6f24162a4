"""A sweep is a file; these are its fields."""
