"""Stage `autoencoder`: an autoencoder of images, from the hub or from a local directory.

in:  nothing (hub), or its files
out: model/ (config.json, safetensors), autoencoder.json
"""

import shutil
from pathlib import Path

from pydantic import TypeAdapter

from effllm.errors import UserError
from effllm.hub.repository import HubFile, Repository
from effllm.models.autoencoder import FILES, WEIGHTS, check_autoencoder
from effllm.models.sources import HubModelSource, LocalModelSource
from effllm.results.data import AutoencoderSummary
from effllm.runtime.stage import Job, main


def build(job: Job) -> None:
    """Put its two files in place; `UserError` for what diffusers' AutoencoderKL cannot be loaded from."""
    source = TypeAdapter(HubModelSource | LocalModelSource).validate_python(job.spec["config"])
    where = f"autoencoders.{job.id}"
    if isinstance(source, LocalModelSource):
        directory = job.output / "model"
        directory.mkdir()
        for path in job.files.values():
            shutil.copyfile(path, directory / path.name)
        shape = check_autoencoder(directory, where)
    else:
        repository = Repository("model", source.repo, source.revision)
        directory = job.scratch / "model"
        directory.mkdir(exist_ok=True)
        repository.fetch(needed_files(repository), directory)
        shape = check_autoencoder(directory, where)
        directory.rename(job.output / "model")
    job.write(
        AutoencoderSummary(
            channels=shape.channels,
            latent_channels=shape.latent_channels,
            downscale=shape.downscale,
            scaling_factor=shape.scaling_factor,
            shift_factor=shape.shift_factor,
            source=source.plain(),
        )
    )


def needed_files(repository: Repository) -> list[HubFile]:
    """The two files of a repository that are the autoencoder; `UserError` where they are not there."""
    files = repository.files(FILES)
    missing = set(FILES) - {file.path for file in files}
    if missing:
        raise UserError(
            f"{repository.repo} at {repository.revision} has no {' and no '.join(sorted(missing))} in its top folder: "
            f"choose a repository of an autoencoder alone with {WEIGHTS}, or a local directory."
        )
    return files


def local_files(directory: Path, where: str) -> list[Path]:
    """The two files of a local autoencoder, checked."""
    check_autoencoder(directory, where)
    return [directory / name for name in FILES]


if __name__ == "__main__":
    from effllm.stages.autoencoder import AutoencoderStage

    main(AutoencoderStage(), build)
