"""Search over training configurations with successive halving."""
