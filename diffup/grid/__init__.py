"""The vocabulary of a grid: cells, axes, data sets and variants. Identity only: no torch, no Ray."""
