"""The paper in one call: networks of every cell of its grid, its tables and figures beside the published ones.

Names load on first use: the published figures need no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
