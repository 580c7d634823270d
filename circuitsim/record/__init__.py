"""Records: one HDF5 file per run, written epoch by epoch, whole after any interruption."""

from circuitsim.record.layout import SCHEMA_VERSION, ArmLayout
from circuitsim.record.naming import free_path
from circuitsim.record.provenance import provenance
from circuitsim.record.reader import ArmRecord, RecordSummary, RunRecord, list_records, read_record
from circuitsim.record.writer import RunWriter

__all__ = [
    "SCHEMA_VERSION",
    "ArmLayout",
    "ArmRecord",
    "RecordSummary",
    "RunRecord",
    "RunWriter",
    "free_path",
    "list_records",
    "provenance",
    "read_record",
]
