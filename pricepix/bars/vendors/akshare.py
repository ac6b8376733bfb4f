"""AkShare's tables have Chinese column names; Tushare's are English and need nothing but their spelling."""

from __future__ import annotations

from typing import Final

__all__ = ["NAMES"]

NAMES: Final[dict[str, tuple[str, ...]]] = {
    "instrument": ("股票代码", "代码", "证券代码", "品种代码"),
    "time": ("日期", "时间", "交易日期", "净值日期"),
    "open": ("开盘", "开盘价", "今开"),
    "high": ("最高", "最高价"),
    "low": ("最低", "最低价"),
    "close": ("收盘", "收盘价", "最新价"),
    "volume": ("成交量",),
    "market_cap": ("总市值",),
    "adjustment_factor": ("复权因子",),
    "up_limit": ("涨停",),
    "down_limit": ("跌停",),
}
"""Their names by ours. Volumes of A-shares count lots of 100 shares, which no pixel depends on."""
