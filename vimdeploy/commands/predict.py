"""`vimdeploy predict`: rows for images from anywhere, as they come or in parquet shards that survive a kill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vimdeploy.commands.arguments import several
from vimdeploy.predicting.containers import ParquetColumns
from vimdeploy.predicting.rows import ClassScore, Prediction
from vimdeploy.predicting.run import Request, Run
from vimdeploy.predicting.shards import Summary
from vimdeploy.progress import SILENT, Reporter

__all__ = ["ClassScore", "ParquetColumns", "Prediction", "Request", "Run", "Summary", "predict", "predict_to"]


def predict(
    model: str | Path,
    sources: str | Path | Sequence[str | Path],
    *,
    top: int = 5,
    batch: int | None = None,
    ops: str = "auto",
) -> Iterator[Prediction]:
    """Yield one row an image, in the order of the sources.

    Args:
        model: ONNX file or plan with its manifest.
        sources: images, folders, globs, lists, tar and parquet shards; see
            :func:`vimdeploy.predicting.sources.expand`.
        top: how many classes a row lists.
        batch: images that run together; None takes what the manifest names as usual.
        ops: what computes the custom ops of an ONNX file; see :func:`vimdeploy.runtime.ort.open_session`.

    Raises:
        ArtifactError: model or manifest is missing, corrupt or foreign.
        ImageError: a source is missing or holds no image. A file that is no image is a row with its error.

    """
    return Run(model, [str(source) for source in several(sources)], Request(top=top, batch=batch, ops=ops)).rows()


def predict_to(
    model: str | Path,
    sources: str | Path | Sequence[str | Path],
    output: str | Path,
    request: Request | None = None,
    *,
    reporter: Reporter = SILENT,
) -> Summary:
    """Write the rows into parquet shards in a folder, going on where an earlier run stopped.

    Args:
        model: ONNX file or plan with its manifest.
        sources: as for :func:`predict`.
        output: a local folder, or an address that pyarrow or fsspec write (``s3://bucket/folder``).
        request: how to predict.
        reporter: told how many images are done.

    Raises:
        UsageError: the folder holds another job, or the sources have changed since.
        ArtifactError: the folder cannot be written; finished shards stay.

    """
    run = Run(model, [str(source) for source in several(sources)], request or Request())
    return run.write(str(output), lambda done: reporter.progress(done, 0))
