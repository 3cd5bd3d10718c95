"""The student report's study, run again: `runs` trains and times, `report` writes it up."""

from scratchnet.study.report import write_study_report
from scratchnet.study.runs import DATASETS, Row, quick_share, run_study, study_devices, study_rows

__all__ = [
    "DATASETS",
    "Row",
    "quick_share",
    "run_study",
    "study_devices",
    "study_rows",
    "write_study_report",
]
