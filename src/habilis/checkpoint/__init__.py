"""F2: saving and loading named components without pickle, published atomically and verified by checksum."""
