"""Stage `generator`: a pipeline for images or videos, from the hub, a local directory, or tiny and of random weights.

in:  nothing (hub, tiny), or its files
out: model/ (a pipeline of diffusers, safetensors), generator.json
"""

import os
import shutil
from pathlib import Path

from pydantic import TypeAdapter

from effllm.errors import UserError
from effllm.hub.repository import HubFile, Repository
from effllm.models.generators import FAMILIES
from effllm.models.generators.check import INDEX, family_of, has_weights, is_needed
from effllm.models.generators.settings import GeneratorSource, TinyGenerator
from effllm.models.generators.shapes import parameters_of
from effllm.models.sources import HubModelSource, LocalModelSource
from effllm.results.model import GeneratorSummary
from effllm.runtime.stage import Job, main


def build(job: Job) -> None:
    """Put the parts of the pipeline in place; `UserError` for what is no pipeline of a known family."""
    source = TypeAdapter(GeneratorSource).validate_python(job.spec["config"])
    where, target = f"generators.{job.id}", job.output / "model"
    if isinstance(source, TinyGenerator):
        FAMILIES[source.family].write_tiny(target, source.seed)
    elif isinstance(source, LocalModelSource):
        _copy(sorted(job.files.values()), target, where)
    else:
        _fetch(source, job.scratch / "model", where)
        (job.scratch / "model").rename(target)
    family = family_of(target, where)
    step, frames = family.size_step(target)
    job.write(
        GeneratorSummary(
            family=family.name,
            parameters={part: parameters_of(target / part, where) for part in family.parts if has_weights(part)},
            side_step=step,
            frame_step=frames,
            source=source.plain(),
        )
    )


def _copy(files: list[Path], target: Path, where: str) -> None:
    root = Path(os.path.commonpath(files))
    family_of(root, where)
    for path in files:
        place = target / path.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def _fetch(source: HubModelSource, directory: Path, where: str) -> None:
    repository = Repository("model", source.repo, source.revision)
    directory.mkdir(exist_ok=True)
    repository.fetch(needed_files(repository), directory)
    family_of(directory, where)


def needed_files(repository: Repository) -> list[HubFile]:
    """The files of a repository that are the parts of the pipeline; `UserError` where there is none."""
    files = [file for file in repository.files() if is_needed(file.path)]
    if not any(file.path == INDEX for file in files):
        raise UserError(
            f"{repository.repo} at {repository.revision} has no {INDEX} in its top folder: choose a repository in the "
            "form of diffusers."
        )
    return files


def local_files(directory: Path, where: str) -> list[Path]:
    """The files of a local pipeline, checked."""
    family_of(directory, where)
    found = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path for path in found if is_needed(path.relative_to(directory).as_posix()))


if __name__ == "__main__":
    from effllm.stages.generator import GeneratorStage

    main(GeneratorStage(), build)
