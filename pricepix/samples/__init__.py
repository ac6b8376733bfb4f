"""Sample bars: simulated markets with a known answer, and real daily bars of a few stocks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
