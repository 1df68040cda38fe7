"""What to run: cells, grids, and one short script per study. Nothing here imports torch at import time."""
