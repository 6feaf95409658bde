"""A line on disk: named tensors and JSON, one folder per product and version, no pickle.

`line.json` says what the line is; every other file counts only as far as it points to it. A change writes
new files beside the old ones, syncs them, and then replaces `line.json` in one step, so that a crash at any
moment leaves the line as it was before or after. What a killed writer leaves behind has names that begin
with `.tmp-`, and the next writer removes it.
"""

from .index import FORMAT
from .line import Damaged, LineStore, check_damaged
from .names import check_new_name, check_task_name
from .records import LineRecord, TaskRecord
from .tensors import fingerprint
from .transaction import Transaction

__all__ = [
    "FORMAT",
    "Damaged",
    "LineRecord",
    "LineStore",
    "TaskRecord",
    "Transaction",
    "check_damaged",
    "check_new_name",
    "check_task_name",
    "fingerprint",
]
