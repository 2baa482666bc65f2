"""F2: everything that can be stepped: adapters, batched physics, native twins, probe environments, the checker."""
