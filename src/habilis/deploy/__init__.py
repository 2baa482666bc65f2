"""F4: from a trained policy to a file that runs elsewhere, checked against the original."""
