"""F1: returns, losses and statistics as pure functions of tensors."""
