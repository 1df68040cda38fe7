"""The commands of `diffup`, one module each."""
