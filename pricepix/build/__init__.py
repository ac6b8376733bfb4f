"""Writing image stores: from a panel, from a market cache, from the authors' data set, and appending."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
