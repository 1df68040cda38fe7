"""Results, caches and leases on disk or in an object store."""
