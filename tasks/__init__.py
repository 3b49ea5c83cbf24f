"""Tasks: data with its split, metrics with their intervals, and the reports built on them."""

from reprogram.errors import DataError
from tasks.arrays import from_arrays
from tasks.bundled import TaskInfo, available
from tasks.data import Inputs, load_task, read_inputs
from tasks.metrics import METRICS, Estimate, Metric, evaluate, rank_metric
from tasks.modalities import MODALITIES
from tasks.molecules import from_molecules, read_molecules
from tasks.task import Dropped, Merged, ReadReport, Task

__all__ = [
    "METRICS",
    "MODALITIES",
    "DataError",
    "Dropped",
    "Estimate",
    "Inputs",
    "Merged",
    "Metric",
    "ReadReport",
    "Task",
    "TaskInfo",
    "available",
    "evaluate",
    "from_arrays",
    "from_molecules",
    "load_task",
    "rank_metric",
    "read_inputs",
    "read_molecules",
]
