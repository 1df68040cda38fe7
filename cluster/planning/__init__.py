"""What a launch has to do, what it will cost, and whether it can run."""
