"""Running cells: the Ray session, the scheduler, the workers and what they do."""
