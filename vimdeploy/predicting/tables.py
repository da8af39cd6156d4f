"""Rows as parquet tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vimdeploy.predicting.rows import ClassScore, Prediction
from vimdeploy.predicting.storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

_METADATA = b"vimdeploy"


def schema_of(outputs: Mapping[str, Sequence[int]], *, labelled: bool) -> pa.Schema:
    """Return the columns of a shard: classes, or one list of values for each of a model's other ``outputs``."""
    import pyarrow as pa

    score = pa.struct([("index", pa.int32()), ("label", pa.string()), ("probability", pa.float32())])
    fields = [pa.field("image", pa.string(), nullable=False), pa.field("error", pa.string())]
    if outputs:
        fields += [
            pa.field(name, pa.list_(pa.float32(), int(np.prod(shape))), metadata={"shape": json.dumps(list(shape))})
            for name, shape in outputs.items()
        ]
    else:
        fields += [
            pa.field("index", pa.int32()),
            pa.field("label", pa.string()),
            pa.field("probability", pa.float32()),
            pa.field("classes", pa.list_(score)),
        ]
    if labelled:
        fields += [pa.field("truth", pa.int32()), pa.field("truth_rank", pa.int32())]
    return pa.schema(fields)


def record_batch(rows: list[Prediction], schema: pa.Schema) -> pa.RecordBatch:
    """Return rows as a batch of :func:`schema_of`."""
    import pyarrow as pa

    columns: dict[str, Any] = {
        "image": [_text(row.image) for row in rows],
        "error": [
            None if row.error is None else row.error.encode("utf-8", "backslashreplace").decode() for row in rows
        ],
        "index": [row.classes[0].index if row.classes else None for row in rows],
        "label": [row.classes[0].label if row.classes else None for row in rows],
        "probability": [row.classes[0].probability if row.classes else None for row in rows],
        "classes": [
            [{"index": c.index, "label": c.label, "probability": c.probability} for c in row.classes] or None
            for row in rows
        ],
        "truth": [row.truth for row in rows],
        "truth_rank": [row.truth_rank for row in rows],
    }
    arrays = []
    for column in schema:
        if pa.types.is_fixed_size_list(column.type):
            arrays.append(_vectors(rows, column))
        else:
            arrays.append(pa.array(columns[column.name], column.type))
    return pa.record_batch(arrays, schema=schema)


def _text(text: str) -> str:
    """A file's name that is no text (bytes of another encoding) keeps those bytes escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _vectors(rows: list[Prediction], column: pa.Field) -> pa.Array:
    """Return one flat list a row, in C order; null where the image could not be predicted."""
    import pyarrow as pa

    size = column.type.list_size
    empty = np.zeros(size, np.float32)
    values = np.concatenate([np.ravel(row.outputs.get(column.name, empty)) for row in rows])
    absent = pa.array([row.error is not None for row in rows])
    return pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float32()), size, mask=absent)


def parquet_bytes(batches: list[pa.RecordBatch], schema: pa.Schema, facts: dict[str, Any]) -> bytes:
    """Return a parquet file whose metadata carries ``facts``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = schema.with_metadata({_METADATA: json.dumps(facts).encode()})
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch.cast(schema))
    return bytes(buffer.getvalue())


def read_rows(storage: Storage, path: str) -> Iterator[Prediction]:
    """Yield the rows of a classifier's shard, as far as accuracy needs them."""
    import pyarrow.parquet as pq

    with storage.open(path) as file:
        table = pq.read_table(file, columns=["image", "error", "index", "label", "probability", "truth", "truth_rank"])
    for row in table.to_pylist():
        best = () if row["index"] is None else (ClassScore(row["index"], row["label"], row["probability"]),)
        yield Prediction(row["image"], best, error=row["error"], truth=row["truth"], truth_rank=row["truth_rank"])


def read_facts(storage: Storage, path: str) -> Any:
    """Return what :func:`parquet_bytes` was given; raises KeyError, ValueError or OSError where there is none."""
    import pyarrow.parquet as pq

    with storage.open(path) as file:
        return json.loads((pq.read_schema(file).metadata or {})[_METADATA])
