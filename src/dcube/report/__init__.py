"""What a person reads after a run: figures and one offline page."""

from dcube.report.figures import selection_figure
from dcube.report.page import write_report

__all__ = ["selection_figure", "write_report"]
