"""A local page to look through images: their bars, forward returns and scores, sheets of them, and other specs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
