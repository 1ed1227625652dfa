"""The board for programs: CSV and JSON, values unrounded."""

from __future__ import annotations

import csv as csv_format
import io
import json
from dataclasses import asdict
from typing import Any

import numpy as np

from ..measurements.base import Metric
from ..measurements.registry import METRICS
from ..stats.ranks import over_seeds
from .agreement import between_methods, between_seeds
from .board import Board, LevelTest, SeedTable, Table
from .verdict import told_apart, verdicts


def csv(board: Board) -> str:
    """One row per record; empty where a record lacks a metric."""
    text = io.StringIO()
    rows = board.rows()
    writer = csv_format.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {key: "" if isinstance(value, float) and np.isnan(value) else value for key, value in row.items()}
        )
    return text.getvalue()


def as_json(board: Board) -> str:
    """Tables, overall ranks, tests, agreement of scores and what was not run; null where a value is not finite."""
    content = {
        "about": board.about,
        "smoke_test": bool(board.smoke),
        "folders": [
            {
                "name": source.name,
                "suite": source.about.get("suite"),
                "records": source.records,
                "passed_over": source.passed_over,
            }
            for source in board.sources
            if len(board.sources) > 1
        ],
        "metrics": {name: _metric_fields(metric) for name, metric in METRICS.items()},
        "overall": [
            {
                "level": row.level,
                "method": row.method,
                "control": row.control,
                "tables": row.tables,
                "of_tables": row.of,
                "wins": row.wins,
                "wins_low": row.low,
                "wins_high": row.high,
                **row.by_metric,
            }
            for row in board.overall()
        ],
        "levels": [
            {
                "level": level.level,
                "tables": level.tables,
                "tasks_and_models": level.blocks,
                "resampled": level.resampled,
                "uninformative": list(level.left_out),
            }
            for level in board.levels
        ],
        "verdict": [asdict(verdict) for verdict in verdicts(board)],
        "told_apart": {
            "headline_columns": told_apart(board.tables, headlines=True)._asdict(),
            "tested_columns": told_apart(board.tables)._asdict(),
        },
        "against_controls": [_standing_fields(table) for table in board.tables],
        "rank_tests": {level: _rank_fields(test) for level, test in board.rank_tests().items()},
        "comparisons": [fields for table in board.tables for fields in _comparison_fields(table)],
        "over_seeds": [_seed_fields(summary) for summary in board.over_seeds()],
        "agreement": [fields for table in board.tables for fields in _agreement_fields(table)],
        "between_tasks": [overlap._asdict() for overlap in board.overlaps()],
        "rows": [
            {key: _finite(value) if isinstance(value, float) else value for key, value in row.items()}
            for row in board.rows()
        ],
        "not_run": [{"cell": str(r.cell), "status": r.status, "reason": r.reason} for r in board.not_run],
        "not_records": board.foreign,
    }
    return json.dumps(content, indent=1) + "\n"


def _finite(value: float) -> float | None:
    """A number as JSON has it."""
    return float(value) if np.isfinite(value) else None


def _metric_fields(metric: Metric) -> dict[str, Any]:
    return {
        k: getattr(metric, k)
        for k in ("title", "version", "unit", "better", "headline", "perfect", "measurement", "text")
    }


def _table_fields(table: Table) -> dict[str, Any]:
    return {k: getattr(table, k) for k in ("task", "level", "model", "replacement", "variant", "seed", "title")}


def _standing_fields(table: Table) -> dict[str, Any]:
    standings = {"random": table.against_random, "trivial": table.against_trivial}
    return {
        **_table_fields(table),
        "informative": table.informative,
        **{kind: None if found is None else asdict(found) for kind, found in standings.items()},
    }


def _rank_fields(test: LevelTest) -> dict[str, Any]:
    result = test.result
    return {
        "tables": test.tables,
        "tasks_and_models": test.blocks,
        "methods": list(test.methods),
        "mean_ranks": None if result is None else result.mean_ranks.tolist(),
        "friedman_chi_squared": None if result is None else _finite(result.statistic),
        "p": None if result is None else result.p,
        "critical_difference": None if result is None else result.critical_difference,
    }


def _comparison_fields(table: Table) -> list[dict[str, Any]]:
    labels = {r.filename: r.cell.method_label for r in table.records}
    return [
        {
            **_table_fields(table),
            "metric": metric,
            "examples": test.examples,
            "base_items": test.items,
            "has_power": test.has_power,
            "best": [labels[r.filename] for r in table.records if metric in table.bold(r)],
            "pairs": [
                {
                    "first": labels[pair.first],
                    "second": labels[pair.second],
                    "difference": _finite(pair.difference),
                    "p": pair.p,
                    "p_adjusted": pair.adjusted,
                }
                for pair in test.pairs
            ],
        }
        for metric, test in table.comparisons.items()
    ]


def _seed_fields(summary: SeedTable) -> dict[str, Any]:
    rows = []
    for method, records in summary.rows:
        by_metric = {
            metric: values
            for metric in summary.columns
            if (values := [r.aggregates[metric].value for r in records if metric in r.aggregates])
        }
        rows.append(
            {
                "method": method,
                "seeds": len(records),
                "rank_correlation": between_seeds(records),
                "metrics": {
                    metric: {"mean": _finite(mean), "standard_deviation": _finite(deviation), "seeds": len(values)}
                    for metric, values in by_metric.items()
                    for mean, deviation in [over_seeds(values)]
                },
            }
        )
    first = summary.tables[0]
    return {
        "task": first.task,
        "level": first.level,
        "model": first.recipe,
        "replacement": first.replacement,
        "variant": first.variant,
        "seeds": summary.seeds,
        "rows": rows,
    }


def _agreement_fields(table: Table) -> list[dict[str, Any]]:
    """One entry where the table's records have sketches, none otherwise."""
    records, matrix = between_methods(table.records)
    if not records:
        return []
    rows = [[_finite(value) for value in row] for row in matrix]
    return [{**_table_fields(table), "methods": [r.cell.method_label for r in records], "rank_correlation": rows}]
