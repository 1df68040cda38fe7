"""Class names of the benchmarks: how people write them, and which names of two data sets mean one class."""

from __future__ import annotations

from collections.abc import Iterable

VOC_CLASSES = tuple(
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "  # noqa: SIM905
    "sofa train tvmonitor".split()
)
# In ascending order of COCO's category ids.
COCO_CLASSES = tuple(
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"  # noqa: SIM905
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,"
    "snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,"
    "fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush".split(",")
)
# Pascal VOC's spelling → the usual one. Where COCO has a word of its own for the same thing, it is COCO's.
USUAL = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
SPELLED = USUAL | {"sofa": "sofa", "tvmonitor": "tv monitor"}


def readable(name: str) -> str:
    """A class name as a text model reads it: ``"tvmonitor"`` → ``"tv monitor"``, ``"traffic_light"`` → with a blank."""
    return SPELLED.get(name.lower(), name.replace("_", " "))


def same_class(name: str) -> str:
    """A key that the names of one class have in common, as ``"aeroplane"`` and ``"Airplane"``."""
    bare = "".join(character for character in name.lower() if character.isalnum())
    return "".join(USUAL.get(bare, bare).split())


def overlap(trained: Iterable[str], tested: Iterable[str]) -> list[str]:
    """The tested names whose class is among the trained ones, in their order."""
    known = {same_class(name) for name in trained}
    return [name for name in tested if same_class(name) in known]
