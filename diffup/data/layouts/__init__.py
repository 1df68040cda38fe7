"""Readers of the VOC, COCO and FSS layouts."""
