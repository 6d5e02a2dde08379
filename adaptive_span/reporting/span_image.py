"""Draw the spans as an image of numbers, which trackers take."""

from typing import cast

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from adaptive_span.config.model_schema import ModelConfig
from adaptive_span.reporting.figure_files import heading
from adaptive_span.reporting.figures import heat_map
from adaptive_span.reporting.tracking import Spans


def span_image(spans: Spans, model: ModelConfig, name: str, step: int) -> np.ndarray:
    """Return the heat map of layers × heads as pixels, (height, width, 3).

    Args:
        spans: Effective span of every head in tokens, (N, H).
        model: What they are the spans of.
        name: Of the run.
        step: After which they were measured.
    """
    figure = heat_map(spans, model.max_span, model.ramp, heading(name, spans, model.max_span, step))
    canvas = cast(FigureCanvasAgg, figure.canvas)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
