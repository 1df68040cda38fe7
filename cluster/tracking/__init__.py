"""MLflow as a view of the result store."""
