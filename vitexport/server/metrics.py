"""Metrics for Prometheus, in a registry of their own so that two servers in one process do not mix."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.process_collector import ProcessCollector

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """What a server counts.

    Attributes:
        requests: Answered requests by route and status.
        request_seconds: From a complete head to the response, by route.
        images: Images answered.
        batch_images: Images per run.
        inference_seconds: Time of one run.
        queued: Images accepted and not yet answered.
        body_bytes: Bytes of request bodies in memory.
    """

    def __init__(self, model: str, version: str, runtime: str, variant: str) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        info = Info("vitexport_model", "The model being served.", registry=self._registry)
        info.info({"name": model, "version": version, "runtime": runtime, "variant": variant})
        self.requests = Counter(
            "vitexport_requests", "Answered requests.", ["route", "status"], registry=self._registry
        )
        self.request_seconds = Histogram(
            "vitexport_request_seconds", "Time to answer.", ["route"], buckets=_SECONDS, registry=self._registry
        )
        self.images = Counter("vitexport_images", "Images answered.", registry=self._registry)
        self.batch_images = Histogram(
            "vitexport_batch_images", "Images per run of the model.", buckets=_BATCHES, registry=self._registry
        )
        self.inference_seconds = Histogram(
            "vitexport_inference_seconds", "Time of one run of the model.", buckets=_SECONDS, registry=self._registry
        )
        self.queued = Gauge("vitexport_queued_images", "Images accepted, not yet answered.", registry=self._registry)
        self.body_bytes = Gauge("vitexport_body_bytes", "Request bodies in memory.", registry=self._registry)

    def render(self) -> bytes:
        """Return the metrics in Prometheus's text format."""
        return generate_latest(self._registry)
