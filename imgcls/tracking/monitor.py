"""MLflow's system metrics, sent through the tracked run so that an outage of the server loses none."""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

INTERVAL = 5.0


class Monitor:
    """A thread that samples the machine every few seconds and logs `system/...` metrics.

    Args:
        run_id: the run.
        uri: the store that the run is in.
        log: takes the metrics and the number of the sample.
    """

    def __init__(self, run_id: str, uri: str, log: Callable[[Mapping[str, float], int], None]) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
        self._source: Any = SystemMetricsMonitor(run_id, tracking_uri=uri)  # type: ignore[no-untyped-call]
        self._log = log
        self._interval = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or INTERVAL)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True, name="imgcls-system-metrics")

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def finish(self) -> None:
        """Take a last sample and end."""
        self._done.set()
        with contextlib.suppress(RuntimeError):
            self._thread.join()

    def _sample(self) -> None:
        step = 0
        while True:
            ended = self._done.wait(self._interval)
            self._source.collect_metrics()
            metrics = self._source.aggregate_metrics()
            self._log({f"system/{name}": value for name, value in metrics.items()}, step)
            for part in self._source.monitors:
                part.clear_metrics()
            step += 1
            if ended:
                return
