"""F3: what acts. A policy owns its observation normaliser and its action map, and is what gets exported."""
