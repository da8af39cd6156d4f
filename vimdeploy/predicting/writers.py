"""Rows as text, each written when it comes: NDJSON, one JSON array, or CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from typing import TextIO

from vimdeploy.errors import UsageError
from vimdeploy.predicting.predictor import Predictor
from vimdeploy.predicting.rows import Prediction


def write_ndjson(rows: Iterable[Prediction], file: TextIO) -> None:
    """Write one JSON object a line."""
    for row in rows:
        file.write(_json(row) + "\n")
        file.flush()


def write_json(rows: Iterable[Prediction], file: TextIO) -> None:
    """Write one JSON array, row by row; it is closed even where the rows end early."""
    mark = "["
    try:
        for row in rows:
            file.write(f"{mark}\n{_json(row)}")
            file.flush()
            mark = ","
    finally:
        file.write("\n]\n" if mark == "," else "[]\n")


def write_csv(rows: Iterable[Prediction], file: TextIO, columns: Iterable[str]) -> None:
    """Write a header and one line a row; see :func:`csv_columns`."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells: list[object] = [row.image, row.error or "", "" if row.truth is None else row.truth]
        for score in row.classes:
            cells += [score.index, score.label, score.probability]
        for values in row.outputs.values():
            cells += values.tolist()
        writer.writerow(cells)
        file.flush()


def csv_columns(predictor: Predictor) -> list[str]:
    """Return the header: the classes beside each other, best first, or the values of one vector.

    Raises:
        UsageError: the model gives tokens or maps, which are no columns.

    """
    names = ["image", "error", "truth"]
    if predictor.classifies:
        ranks = range(1, min(predictor.top, len(predictor.labels)) + 1)
        return [*names, *(f"{what}_{rank}" for rank in ranks for what in ("index", "label", "probability"))]
    for name, shape in predictor.output_shapes.items():
        if len(shape) != 1:
            raise UsageError(
                f"CSV has no columns for {name}, which is {' x '.join(map(str, shape))} an image.",
                hint="Write parquet with -o, or --format ndjson.",
            )
        names += [f"{name}_{index}" for index in range(shape[0])]
    return names


def _json(row: Prediction) -> str:
    return json.dumps(row.to_dict(), allow_nan=False)
