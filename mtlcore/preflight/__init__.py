"""What is found out before a run: problems of recipe, plugins, model and rows; sizes and steps."""
