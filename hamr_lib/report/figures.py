"""The paper's figures, drawn from saved results alone.

Each function draws one figure and leaves four files: PDF (vector), PNG, a CSV with exactly the
plotted numbers, and its caption as Markdown.
"""

from hamr_lib.report.curves import ablations, fig6, fig7, fig8, training_curves
from hamr_lib.report.meshes import fig4, fig5, fig9, fig10
from hamr_lib.report.network import fig2, fig3

__all__ = [
    "ablations",
    "fig2",
    "fig3",
    "fig4",
    "fig5",
    "fig6",
    "fig7",
    "fig8",
    "fig9",
    "fig10",
    "training_curves",
]
