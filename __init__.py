"""omni2vec turns any vision-language model into an omni-modal embedder."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Embedder", "__version__"]

if TYPE_CHECKING:
    from .model.embedder import Embedder


def __getattr__(name: str) -> Any:
    """Import `Embedder` on first use, so that `omni2vec --help` does not wait for torch."""
    if name == "Embedder":
        from .model.embedder import Embedder

        return Embedder
    raise AttributeError(f"module 'omni2vec' has no attribute {name!r}")
