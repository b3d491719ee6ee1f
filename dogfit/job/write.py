"""Results of a run as files."""

import json
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dogfit.analysis.results import RunResult
from dogfit.analysis.summary import summarize
from dogfit.atomic_write import write_atomically
from dogfit.runtime.keys import make_key
from dogfit.runtime.workspace import Workspace

if TYPE_CHECKING:
    from dogfit.autoencoder import Autoencoder

Pictures = dict[tuple[str, str], bytes]


def write_results(
    work: Workspace,
    result: RunResult,
    autoencoders: Mapping[int, "Autoencoder"],
    *,
    inputs: str,
    everything: str,
    figures: bool,
) -> None:
    """Gather every result but `run.json`, except those that are published already.

    Args:
      work: where they are gathered.
      result: the findings.
      autoencoders: by kernel size.
      inputs: key of what the fits and codes depend on.
      everything: key of what the summary depends on.
      figures: draw figures.
    """
    from safetensors.numpy import save_file

    from dogfit.analysis.tables import fitted_tensors, kernel_table, layer_table, parquet
    from dogfit.report.html import report_page

    def part(name: str, make: Callable[[], Any]) -> Any:
        return work.json_stage(name, make_key(name, inputs), make)

    text = encode_json(summarize(result, part))
    summary = json.loads(text)
    pictures = cache(partial(_draw, result, summary) if figures else dict)
    work.result("kernels.parquet", inputs, lambda path: kernel_table(result).write_parquet(path))
    work.result("fits.safetensors", inputs, lambda path: save_file(fitted_tensors(result), path))
    work.result("layers.parquet", inputs, lambda path: path.write_bytes(parquet(layer_table(summary))))
    if autoencoders:
        work.result_folder("autoencoder", inputs, partial(_save_autoencoders, autoencoders))
    work.result("summary.json", everything, text)
    if figures:
        work.result_folder("figures", everything, lambda folder: _save_pictures(pictures(), folder))
    work.result(
        "report.html", everything, lambda path: path.write_bytes(report_page(summary, pictures()).encode())
    )


def _draw(result: RunResult, summary: Mapping[str, Any]) -> Pictures:
    from dogfit.report.figures.draw import draw_figures

    return draw_figures(result, summary)


def _save_pictures(pictures: Pictures, folder: Path) -> None:
    for (size, name), png in pictures.items():
        write_atomically(folder / f"{name}_{size}x{size}.png", png)


def _save_autoencoders(autoencoders: Mapping[int, "Autoencoder"], folder: Path) -> None:
    for size, autoencoder in autoencoders.items():
        autoencoder.save(folder / f"{size}x{size}")


def encode_json(value: object) -> bytes:
    """Write JSON that people can read, and that holds no NaN."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
