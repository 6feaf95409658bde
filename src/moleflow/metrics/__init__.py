"""Metrics: numpy in, float out. They know nothing of models, data sets or files."""

from moleflow.metrics.continual import (
    RoutingAccuracy,
    answer_of,
    average_accuracy,
    backward_transfer,
    forgetting,
    router_gap,
    routing_accuracy,
    routing_shares,
)
from moleflow.metrics.curve import F1Max
from moleflow.metrics.image import image_ap, image_auroc, image_f1_max
from moleflow.metrics.pixel import (
    AUPIMO_BOUNDS,
    AUPRO_LIMIT,
    Aupimo,
    PixelMetrics,
    PixelScores,
    aupimo,
    aupro,
    pixel_ap,
    pixel_auroc,
    pixel_f1_max,
)

__all__ = [
    "AUPIMO_BOUNDS",
    "AUPRO_LIMIT",
    "Aupimo",
    "F1Max",
    "PixelMetrics",
    "PixelScores",
    "RoutingAccuracy",
    "answer_of",
    "aupimo",
    "aupro",
    "average_accuracy",
    "backward_transfer",
    "forgetting",
    "image_ap",
    "image_auroc",
    "image_f1_max",
    "pixel_ap",
    "pixel_auroc",
    "pixel_f1_max",
    "router_gap",
    "routing_accuracy",
    "routing_shares",
]
