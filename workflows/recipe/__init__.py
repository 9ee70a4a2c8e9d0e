"""Recipes: one YAML file that says what a command does; its schema, loading and errors."""
