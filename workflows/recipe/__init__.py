"""Recipes: YAML files with the settings of commands; their schema, loading and errors.

The recipes that come with Skysift are data files beside it; command-line options live in
:mod:`workflows.commands`.
"""
