from .jkx_dataset import import_jkx as import_jkx
from .jkx_dataset import jkx_labels as jkx_labels
from .jkx_dataset import jkx_panel as jkx_panel
from .market import MarketReading as MarketReading
from .market import build_market_store as build_market_store
from .request import StoreOptions as StoreOptions
from .request import WindowChoice as WindowChoice
