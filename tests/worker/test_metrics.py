import os
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.jobs.job import FINISHED
from service.jobs.parameters import OPERATIONS
from service.settings import SettingsError
from worker.metrics import FORWARD, GRADIENT, Family, Metrics, exported

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Scraped:
    """Metrics behind their exporter, read as Prometheus reads them."""

    def __init__(self, metrics: Metrics, port: int) -> None:
        self.metrics, self.port = metrics, port

    def samples(self) -> Samples:
        """Values by name and labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            text = answer.read().decode()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return self.samples()[name, frozenset(labels.items())]


@pytest.fixture
def scraped() -> Iterator[Scraped]:
    metrics = Metrics()
    with exported(metrics.registry, [os.getpid()], "127.0.0.1", 0) as port:
        assert port is not None
        yield Scraped(metrics, port)


def test_a_call_s_rows_and_seconds_are_counted_by_model_and_kind(scraped: Scraped) -> None:
    metrics = scraped.metrics
    for rows in (3, 64, 64):
        metrics.batch_rows["digits", FORWARD].observe(rows)
        metrics.network_seconds["digits", FORWARD].observe(0.015)
    metrics.batch_rows["digits", GRADIENT].observe(16)
    plain = {"model": "digits", "call": "forward"}
    assert scraped.value("fokker_batch_rows_sum", **plain) == 131
    assert scraped.value("fokker_batch_rows_bucket", le="4.0", **plain) == 1
    assert scraped.value("fokker_batch_rows_bucket", le="64.0", **plain) == 3
    assert scraped.value("fokker_batch_rows_count", model="digits", call="gradient") == 1
    assert scraped.value("fokker_network_seconds_sum", **plain) == pytest.approx(0.045)


def test_every_metric_is_exported_under_its_name(scraped: Scraped) -> None:
    metrics, job = scraped.metrics, ("generate", "digits")
    metrics.tick_seconds.observe(0.02)
    metrics.cancel_latency.observe(0.003)
    metrics.queue_wait[job].observe(1.5)
    metrics.first_preview[job].observe(2.5)
    metrics.rows_waiting["digits"].set(12)
    metrics.model_loaded["digits"].set(True)
    metrics.knee_rows["digits"].set(64)
    metrics.nfe[job].inc(1000)
    metrics.images[job].inc(4)
    metrics.jobs["generate", "succeeded"].inc()
    both = {"operation": "generate", "model": "digits"}
    assert scraped.value("fokker_tick_seconds_sum") == pytest.approx(0.02)
    assert scraped.value("fokker_cancel_latency_seconds_sum") == pytest.approx(0.003)
    assert scraped.value("fokker_queue_wait_seconds_sum", **both) == 1.5
    assert scraped.value("fokker_time_to_first_preview_seconds_sum", **both) == 2.5
    assert scraped.value("fokker_rows_waiting", model="digits") == 12
    assert scraped.value("fokker_model_loaded", model="digits") == 1
    assert scraped.value("fokker_knee_rows", model="digits") == 64
    assert scraped.value("fokker_nfe_total", **both) == 1000
    assert scraped.value("fokker_images_total", **both) == 4
    assert scraped.value("fokker_jobs_total", operation="generate", status="succeeded") == 1


def test_every_end_of_a_job_is_exported_before_it_happens(scraped: Scraped) -> None:
    for operation in OPERATIONS:
        for status in FINISHED:
            assert scraped.value("fokker_jobs_total", operation=operation, status=status) == 0


def test_the_worker_s_own_memory_is_exported(scraped: Scraped) -> None:
    assert scraped.value("process_resident_memory_bytes") > 2**20


def test_memory_and_time_of_all_processes_are_added_up() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        both, one = (
            {family.name: family.samples[0].value for family in Family(pids).collect()}
            for pids in ([os.getpid(), other.pid], [os.getpid()])
        )
    assert both["process_virtual_memory_bytes"] > one["process_virtual_memory_bytes"]
    assert both["process_open_fds"] >= one["process_open_fds"] + 3
    assert both["process_start_time_seconds"] == one["process_start_time_seconds"]


def test_two_workers_of_one_process_share_nothing(scraped: Scraped) -> None:
    Metrics().tick_seconds.observe(1.0)
    assert scraped.value("fokker_tick_seconds_count") == 0


def test_a_label_s_child_is_bound_once() -> None:
    metrics = Metrics()
    assert metrics.nfe["invert", "digits"] is metrics.nfe["invert", "digits"]
    assert metrics.nfe["invert", "digits"] is not metrics.nfe["loglik", "digits"]
    assert metrics.knee_rows["digits"] is metrics.knee_rows["digits"]


def test_a_closed_exporter_frees_its_port_and_thread() -> None:
    threads = threading.active_count()
    with exported(Metrics().registry, [os.getpid()], "127.0.0.1", 0) as port:
        assert threading.active_count() == threads + 1
        assert port is not None
    assert threading.active_count() == threads
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_port_that_is_taken_is_refused_by_its_setting(scraped: Scraped) -> None:
    taken = exported(Metrics().registry, [os.getpid()], "127.0.0.1", scraped.port)
    with pytest.raises(SettingsError, match="FOKKER_WORKER_METRICS_PORT"), taken:
        pass
