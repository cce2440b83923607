"""A whole comparison: made, measured, summarized and written to a folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vidsparse.comparison import fingerprint
from vidsparse.comparison.finished import Finished
from vidsparse.comparison.pieces import CompareWork
from vidsparse.comparison.reporter import Reporter
from vidsparse.comparison.results import make_results, write_files
from vidsparse.comparison.spec import Spec
from vidsparse.comparison.store import FOLDER, SHEET, Clips
from vidsparse.comparison.workers import maybe_pool
from vidsparse.errors import BadInputError

if TYPE_CHECKING:
    from vidsparse.metrics.report.results import Results


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What a comparison found, and where it wrote it.

    Attributes:
        results: Every number, as in results.json.
        folder: Where the files lie; the frames of ``results.clips`` are paths relative to it.
        files: Path of each file by its name: ``index.html``, ``report.md``, ``results.csv``,
            ``results.json``, ``sheet.png``, and a video or an image of the first prompt and seed
            for dense and each preset.
    """

    results: Results
    folder: Path
    files: dict[str, Path]

    def __str__(self) -> str:
        """The verdict on each preset, and where the report is."""
        said = [f"{row.preset}: {row.sentence}" for row in self.results.summary]
        return "\n".join([*said, str(self.files["index.html"])])


def run_comparison(
    spec: Spec,
    folder: Path,
    *,
    command: str,
    reporter: Reporter,
    ray: str | None = None,
    overwrite: bool = False,
) -> Comparison:
    """Make what is not there yet, measure it, and write the report.

    Args:
        spec: What to compare.
        folder: Where to; what it holds of an earlier run under the same settings is used again.
        command: How it was asked for, for the report.
        reporter: Who is told of the work.
        ray: A cluster to spread the work over, as ``ray_pool`` takes it.
        overwrite: Whether files of something else may be replaced.

    Raises:
        BadInputError: For what cannot be compared, before anything is made.
        VidsparseError: When a run fails; what was finished is kept.
    """
    import vidsparse.metrics.report.write  # noqa: F401 what is missing is missed before the work

    check_folder(folder, spec, overwrite=overwrite)
    clips = Clips(folder)
    with maybe_pool(ray, spec.job.device, reporter) as pool, clips.locked():
        machine = partial(fingerprint.of_machine, spec.job)
        finished = Finished(
            spec=spec, clips=clips, machine=pool.ask(machine) if pool else machine()
        )
        CompareWork(finished, reporter).do(pool)
        results = make_results(finished, command)
        files = write_files(folder, finished, results)
    return Comparison(results=results, folder=folder, files=files)


def check_folder(folder: Path, spec: Spec, *, overwrite: bool) -> None:
    """Make sure that the report can be written, and that it replaces no file of something else.

    Raises:
        BadInputError: When it cannot, or would.
    """
    from vidsparse.metrics.report.write import FILES
    from vidsparse.pipelines.running.video import check_writable

    if folder.exists() and not folder.is_dir():
        raise BadInputError(f"{folder} is a file: -o (out=) names the folder to write to")
    videos = [f"{name}{spec.job.suffix}" for name in spec.names]
    taken = [name for name in (*videos, *FILES, SHEET) if (folder / name).exists()]
    if taken and not overwrite and not (folder / FOLDER).is_dir():
        raise BadInputError(
            f"{folder} holds {taken[0]}, and no comparison: give --overwrite (overwrite=True) to "
            "replace what is in the way, or another folder with -o (out=)"
        )
    for name in videos:
        check_writable(folder / name, image=spec.job.checkpoint.image)
