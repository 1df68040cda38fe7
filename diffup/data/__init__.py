"""Datasets on disk: the `dataset.json` reader and the embedded `shapes4i`."""
