"""Stage `model`: a model that the study does not train, from the hub, from a local directory, or of random weights.

in:  nothing (hub, random), or the files of the directory; tokenizer, for a vision-language model of random weights
out: model/ (config, safetensors, tokenizer), for other random weights without tokenizer; model.json (what the model is,
     read from its files, and `unscored`, why no score of it means anything, for random weights)

A model that a later stage could not load, or would take for what it is not, ends here in one sentence.
"""

import shutil
from pathlib import Path

from pydantic import TypeAdapter

from effllm.errors import UserError
from effllm.hub.repository import HubFile, Repository
from effllm.models.checkpoint.check import check_directory
from effllm.models.checkpoint.files import MODEL_FILES, is_taken, model_files, weight_files
from effllm.models.checkpoint.settings import check_settings
from effllm.models.sources import HubModelSource, LocalModelSource, RandomSource
from effllm.results.model import ModelSummary
from effllm.runtime.stage import Job, main


def build(job: Job) -> None:
    """Put the files of the model in place, weights in safetensors only, and write down what they are."""
    source = TypeAdapter(HubModelSource | LocalModelSource | RandomSource).validate_python(job.spec["config"])
    target = job.output / "model"
    where = f"models.{job.id}"
    if isinstance(source, RandomSource):
        # torch takes seconds to import, and a directory that is refused by its names or headers needs none of it.
        from effllm.models.random_weights import write_random_model

        tokenizer = job.inputs["tokenizer"].directory / "tokenizer" if source.tokenizer else None
        write_random_model(source, target, tokenizer)
    elif isinstance(source, LocalModelSource):
        _copy(sorted(job.files.values()), target, where)
    else:
        _fetch(source, job.scratch / "model", where)
        model_files(job.scratch / "model", where)
        check_directory(job.scratch / "model", where)
        (job.scratch / "model").rename(target)
    from effllm.models.checkpoint.inspect import inspect_model
    from effllm.models.random_weights import RANDOM_WEIGHTS

    is_random = isinstance(source, RandomSource)
    has_tokenizer = not isinstance(source, RandomSource) or source.tokenizer is not None
    record = inspect_model(target, where, has_tokenizer)
    unscored = RANDOM_WEIGHTS if is_random else None
    job.write(ModelSummary(model=record, source=source.plain(), unscored=unscored))


def _copy(files: list[Path], target: Path, where: str) -> None:
    """Copy the part of a local directory that is the model."""
    if not files:
        raise UserError(f"{where}: no file of the model is among the inputs; run the stage by the workflow.")
    directory = files[0].parent
    names = {path.name for path in model_files(directory, where)}
    check_directory(directory, where)
    weights = weight_files(directory, names, where)
    target.mkdir()
    for path in files:
        if is_taken(path.name, weights):
            shutil.copyfile(path, target / path.name)


def _fetch(source: HubModelSource, directory: Path, where: str) -> None:
    """Fetch the part of a repository that is the model into the scratch, where a killed run is taken up again."""
    repository = Repository("model", source.repo, source.revision)
    files = needed_files(repository, directory, where)
    repository.fetch(files, directory)
    names = {file.path for file in files}
    for path in directory.iterdir():
        if path.name not in names:
            path.unlink()


def needed_files(repository: Repository, directory: Path, where: str) -> list[HubFile]:
    """The part of a repository that is the model, whose small files are fetched into `directory` to know it.

    What they tell of is refused before the weights are on their way.
    """
    files = repository.files(MODEL_FILES)
    names = {file.path for file in files}
    if not any(name.endswith(".safetensors") for name in names):
        raise UserError(
            f"{repository.repo} at {repository.revision} has no safetensors: choose a revision that has, or convert it "
            "and use a local source."
        )
    directory.mkdir(exist_ok=True)
    repository.fetch([file for file in files if not file.path.endswith(".safetensors")], directory)
    check_settings(directory, where)
    weights = weight_files(directory, names, where)
    return [file for file in files if is_taken(file.path, weights)]


if __name__ == "__main__":
    from effllm.stages.model import ModelStage

    main(ModelStage(), build)
