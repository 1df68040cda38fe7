"""From results to paper: frames, statistics and tables. Imports neither torch nor Ray."""
