"""Tables of results: their model, their contents and their formats."""
