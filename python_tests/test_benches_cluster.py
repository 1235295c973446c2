"""The cost model of docs/scale.md, and the parts of its benchmark that need no cluster."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest

from exml_fast.storage import load_json, save_json

BENCHES = Path(__file__).resolve().parents[1] / "benches"
ROWS: list[dict[str, Any]] = [
    {"part": "overhead", "milliseconds_a_task": 2.0, "seconds_to_start_a_worker": 5.0, "tasks": 10,
     "percent_of_ten_seconds": 0.02},
    {"part": "manifest", "entries": 1_000_000, "seconds_to_open": 1.0, "seconds_to_resume": 2.0,
     "microseconds_to_add": 10.0},
    {"part": "images", "device": "cpu", "threads": 1, "recipe": "a/slow", "seconds_an_image": 100.0,
     "flops_an_image": 5e12, "bytes_an_image": 150_000},
]  # fmt: skip


@pytest.fixture
def cost(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHES)
    return importlib.import_module("cluster_cost")


def test_one_worker_takes_the_time_of_all_images(cost: Any) -> None:
    one, *_ = [row for row in cost.cost_rows(ROWS) if row["workers"] == 1 and "extrapolated" in row["device"]]
    shards = math.ceil(1_200_000 / 84)
    seconds = shards * (84 * 100 + 0.002) + 5 + 2 * shards / 1_000_000
    assert one["hours"] == pytest.approx(seconds / 3600) and one["shards"] == shards
    assert 0 <= one["overhead_percent"] < 0.1


def test_workers_share_the_work_until_the_driver_is_busy(cost: Any) -> None:
    rows = cost.cost_rows(ROWS)
    for device in {row["device"] for row in rows}:
        own = [row for row in rows if row["device"] == device]
        assert [row["workers"] for row in own] == [1, 64, 1024]
        assert own[0]["hours"] > own[1]["hours"] > own[2]["hours"]
        assert own[0]["device_hours"] <= own[1]["device_hours"] <= own[2]["device_hours"]
    instant = [row | {"seconds_an_image": 1e-9} if row["part"] == "images" else row for row in ROWS]
    busy = [row for row in cost.cost_rows(instant) if row["workers"] == 1024 and "extrapolated" in row["device"]]
    assert busy[0]["hours"] * 3600 == pytest.approx(5 + busy[0]["shards"] * (0.002 + 1e-5) + 2 * 14286 / 1e6, rel=1e-3)


def test_a_measured_gpu_replaces_the_estimate(cost: Any) -> None:
    assert any("H200, estimated" in row["device"] for row in cost.cost_rows(ROWS))
    gpu = ROWS[-1] | {"device": "NVIDIA H200", "seconds_an_image": 0.05}
    assert not any("estimated" in row["device"] for row in cost.cost_rows([*ROWS, gpu]))
    assert cost.cost_table([*ROWS, gpu]).count("NVIDIA H200, extrapolated") == 3
    assert "manifest of 1,000,000 shards" in cost.fault_table(ROWS)


def test_the_limit_that_costs_most_comes_first(cost: Any) -> None:
    gpu = ROWS[-1] | {"device": "NVIDIA H200"}
    slow = cost.first_limits([*ROWS, gpu | {"seconds_an_image": 1.0}])
    assert "\n1. **Starting workers.**" in slow and "sets the wall-clock time" not in slow
    fast = cost.first_limits([*ROWS, gpu | {"seconds_an_image": 0.001}])
    assert (
        "\n1. **The driver.** It places and enters 14,286 shards" in fast and "the driver sets the wall-clock" in fast
    )
    assert "1,024 workers need larger shards, of 2.1 s or more" in fast  # 1,024 tasks of 2 ms, and 10 μs an entry


def test_lists_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(BENCHES)
    bench = importlib.import_module("cluster")
    row = bench.manifest(tmp_path, 1500)
    assert row["entries"] == 1500 and row["seconds_to_open"] < 5 and row["seconds_to_resume"] < 10


def test_rows_keep_the_commit_that_they_were_measured_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(BENCHES)
    measure = importlib.import_module("measure")
    path = tmp_path / "rows.json"
    for commit, row in (("a", {"part": "x", "n": 1}), ("b", {"part": "y", "n": 2}), ("c", {"part": "y", "n": 3})):
        monkeypatch.setattr(measure, "provenance", lambda *_, commit=commit: {"commit": commit, "machine": {}})
        measure.replace_rows(path, [row], ("part",), "a command")
    stored = load_json(path)
    assert stored["rows"] == [{"part": "x", "n": 1, "commit": "a"}, {"part": "y", "n": 3, "commit": "c"}]
    assert importlib.import_module("readme_tables.common").commits(stored) == ["a", "c"]
    save_json(path, {"commit": "old", "rows": [{"part": "x"}, {"part": "z"}]})
    measure.replace_rows(path, [{"part": "x"}], ("part",), "a command")
    assert [row["commit"] for row in load_json(path)["rows"]] == ["old", "c"]
