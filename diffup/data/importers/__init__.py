"""Data sets of annotation tools (labelme, CVAT, COCO, folders of masks), converted to a ``dataset.json`` and its files."""
