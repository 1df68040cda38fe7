"""Results published by others."""
