"""F4: one file per algorithm. They receive batches and specs, and know nothing of environments or files."""
