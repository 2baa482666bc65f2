"""F6: configurations tuned and measured for an algorithm on an environment."""
