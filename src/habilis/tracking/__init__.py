"""F2: where scalars go: console, JSON lines, TensorBoard, Weights & Biases."""
