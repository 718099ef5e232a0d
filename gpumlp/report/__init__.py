"""Reports and plots: `render_report` makes one HTML page of a run, the plots make matplotlib figures.

The figures serve a light and a dark page (`figure_svg`). Those of curves, boundaries, bars and histograms carry the
text for readers who do not see them as their label: ``figure.get_label()``.
"""

from gpumlp.report.bars import plot_bars, plot_histograms, plot_published_and_ours
from gpumlp.report.boundaries import plot_decision_regions, plot_points, plot_probability_map
from gpumlp.report.curves import plot_curve_panels, plot_curves, plot_fits
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
    "plot_bars",
    "plot_confusion_matrix",
    "plot_curve_panels",
    "plot_curves",
    "plot_decision_regions",
    "plot_fits",
    "plot_histograms",
    "plot_history",
    "plot_points",
    "plot_predicted_against_true",
    "plot_probability_map",
    "plot_published_and_ours",
    "plot_residuals",
    "render_report",
]
