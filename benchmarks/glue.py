"""Tasks of GLUE (Wang et al., 2019): the columns of their files and what they are judged by."""

from __future__ import annotations

import dataclasses
import pathlib

from mobillm.device.dataset import Dataset, load_examples

__all__ = ["GLUE", "Task"]


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """One task.

    Attributes:
        folder: its folder, which holds ``train.tsv`` and ``dev.tsv``.
        text, pair, label: columns, by name or number; ``pair`` is None for single sentences.
        labels: names of the classes, in the order of their numbers.
        header: whether the first line names the columns.
        limit: training samples that are used, the first ones; None uses all.
        metric: what dev is judged by, of :func:`mobillm.nn.evaluation.evaluate`.
        kind: task of a session.
        lower: whether less of the metric is better.

    """

    folder: str
    text: str
    pair: str | None
    label: str
    labels: tuple[str, ...] = ("0", "1")
    header: bool = True
    limit: int | None = None
    metric: str = "accuracy"
    kind: str = "classification"
    lower: bool = False

    def load(self, data: pathlib.Path, part: str) -> Dataset:
        """Read a part, ``train`` or ``dev``, from the folder of all tasks."""
        return load_examples(
            data / self.folder / f"{part}.tsv",
            task=self.kind,
            text_column=self.text,
            pair_column=self.pair,
            label_column=self.label,
            labels=self.labels,
            limit=self.limit if part == "train" else None,
            header=self.header,
        )


GLUE = {
    "sst2": Task("SST-2", "sentence", None, "label", limit=3000),
    "mrpc": Task("MRPC", "#1 String", "#2 String", "Quality", limit=1000),
    "rte": Task(
        "RTE", "sentence1", "sentence2", "label", labels=("entailment", "not_entailment"), limit=1000
    ),
    "cola": Task("CoLA", "3", None, "1", header=False, limit=3000, metric="mcc"),
}
