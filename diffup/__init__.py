"""DiffUp: few-shot segmentation as conditional diffusion over backbone-agnostic priors (arXiv 2407.16182)."""

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from diffup.api import DiffUp
    from diffup.result import Result
    from diffup.support import Support, Text

__all__ = ["DiffUp", "Result", "Support", "Text"]


def __getattr__(name: str) -> object:
    """The public API, imported on first use: computing a metric does not load torch."""
    if name in __all__:
        from importlib import import_module

        module = {"DiffUp": "api", "Result": "result"}.get(name, "support")
        return getattr(import_module(f"diffup.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
