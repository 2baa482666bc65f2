"""F0: the words every other floor speaks: types, specs, protocols, random streams, configuration, state."""
