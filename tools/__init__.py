"""Maintainers' tools: fault campaigns and the training of the embedded backbones."""
