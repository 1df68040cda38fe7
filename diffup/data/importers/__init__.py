"""Data sets of annotation tools (labelme, CVAT, COCO, folders of masks), as a ``dataset.json`` and its files."""
