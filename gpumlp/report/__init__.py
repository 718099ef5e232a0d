"""Reports and plots of a training run: `render_report` makes one HTML page, the plots matplotlib figures."""

from gpumlp.report.plots import (
    plot_confusion_matrix,
    plot_history,
    plot_predicted_against_true,
    plot_residuals,
)
from gpumlp.report.render import RunReport, figure_svg, render_report

__all__ = [
    "RunReport",
    "figure_svg",
    "plot_confusion_matrix",
    "plot_history",
    "plot_predicted_against_true",
    "plot_residuals",
    "render_report",
]
