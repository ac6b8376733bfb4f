"""From a trained model to a factor: score a store, keep the scores in a cache, evaluate them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
