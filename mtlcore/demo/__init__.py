"""The demo: five small real tasks, a recipe, a model from a package, and a tiny random model."""
