"""Features and prior maps computed once, with Ray Data, before the trials."""
