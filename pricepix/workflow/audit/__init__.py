"""The audit: a search for anything in a panel, its images, labels and scores that knows what came later."""

from pricepix.workflow.audit.auditor import audit
from pricepix.workflow.audit.report import Audit, Check

__all__ = ["Audit", "Check", "audit"]
