from .market_cache import MarketCache as MarketCache
from .market_writer import MarketArrays as MarketArrays
from .market_writer import write_market_cache as write_market_cache
from .panel import Panel as Panel
from .report import PanelReport as PanelReport
from .resampling import resample as resample
from .sessions import Session as Session
