"""How much of a method's result depends on what should not matter: examples, seeds, other tasks, dtypes."""
