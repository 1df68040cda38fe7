"""Frozen backbones: any timm or open_clip model, and the three tiny embedded ones."""
