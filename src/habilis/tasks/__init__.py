"""F3: robots and what they are asked to do, as Gymnasium ids `habilis/<Task>-v0`."""
