"""Training on base classes: episodes, losses, the loop, several processes, and recipes."""
