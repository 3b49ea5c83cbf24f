"""Tasks: data with its split, metrics with their intervals, and the reports built on them."""

from reprogram.errors import DataError
from tasks.metrics import METRICS, Estimate, Metric, evaluate, rank_metric
from tasks.molecules import TaskInfo, available, from_molecules, load_task, read_molecules
from tasks.task import Dropped, Merged, ReadReport, Task

__all__ = [
    "METRICS",
    "DataError",
    "Dropped",
    "Estimate",
    "Merged",
    "Metric",
    "ReadReport",
    "Task",
    "TaskInfo",
    "available",
    "evaluate",
    "from_molecules",
    "load_task",
    "rank_metric",
    "read_molecules",
]
