"""What is asked of many machines, beside what is asked of a run.

Knows: those options and their ranges. Knows nothing about how machines are reached.
"""

import re
from dataclasses import dataclass

from engines.common.schema import settle
from engines.errors import refuse, wrong_values

HERE, OTHERS = "local", "workers"  # addresses with a meaning of their own
_ADDRESS = re.compile(r"(ray://)?[\w.\-\[\]:]+:\d{1,5}")


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Who paints a run, and where its chunks are. Raises UsageError that lists every mistake at once.

    >>> ClusterSettings(cluster="auto", workers=8).allow_mixed
    False
    """

    # auto: the Ray cluster that this machine belongs to; HOST:PORT or ray://HOST:PORT: that one; local: this machine
    # alone; workers: whoever comes with `dengine work`
    cluster: str = "auto"
    store: str | None = None  # folder or address for the chunks; None: inside the run's folder
    dataset: bool = True  # whether the dataset is written into the run's folder; else chunks stay in the store alone
    workers: int | None = None  # at most; None: as many as the cluster has room for
    worker_cpus: int | None = None  # cores, and threads, of a worker; None: as many as `threads`, else 1
    worker_gpus: float | None = None  # GPUs of a worker, or a share of one; None: 1 where the cluster has some, else 0
    allow_mixed: bool = False  # use workers of other devices, engines or precisions: gives up that bytes repeat

    def __post_init__(self) -> None:
        settle(self)
        known = self.cluster in ("auto", HERE, OTHERS) or _ADDRESS.fullmatch(self.cluster) is not None
        refuse(
            wrong_values(
                self,
                (
                    ("cluster", f"auto, {HERE}, {OTHERS}, HOST:PORT or ray://HOST:PORT", known),
                    ("store", "given, where `dataset` is off", self.dataset or self.store is not None),
                    ("workers", "a whole number from 1 on", self.workers is None or self.workers >= 1),
                    ("worker_cpus", "a whole number from 1 on", self.worker_cpus is None or self.worker_cpus >= 1),
                    ("worker_gpus", "a number from 0 to 64", self.worker_gpus is None or 0 <= self.worker_gpus <= 64),
                ),
            )
        )
