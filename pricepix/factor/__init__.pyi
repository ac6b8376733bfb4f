from .cache import FactorCache as FactorCache
from .cache import open_cache as open_cache
from .evaluation.evaluate import evaluate as evaluate
from .evaluation.report import write_report as write_report
from .evaluation.result import Evaluation as Evaluation
from .export_files import export as export
from .panel_check import DifferentPanelWarning as DifferentPanelWarning
from .scoring import score as score
