"""Stage `model`: a model that the study does not train, from the hub, from a local directory, or of random weights.

in:  nothing (hub, random), or the files of the directory
out: model/ (config, safetensors, tokenizer); for random weights no tokenizer, and model.json that says so
"""

import shutil

from pydantic import TypeAdapter

from effllm.errors import UserError
from effllm.hub.repository import Repository
from effllm.stage import Job, main
from effllm.study.graph import MODEL_FILES
from effllm.study.models import HubModelSource, LocalModelSource, RandomSource


def build(job: Job) -> None:
    """Put the files of the model in place; weights in safetensors only."""
    source = TypeAdapter(HubModelSource | LocalModelSource | RandomSource).validate_python(job.spec["config"])
    target = job.output / "model"
    if isinstance(source, RandomSource):
        # torch takes seconds to import, and the other sources need none of it.
        from effllm.models.random_weights import RANDOM_WEIGHTS, SUMMARY, write_random_model

        write_random_model(source, target)
        job.write_json(SUMMARY, {"source": source.plain(), "unscored": RANDOM_WEIGHTS})
        return
    if isinstance(source, LocalModelSource):
        target.mkdir()
        for path in job.files.values():
            shutil.copyfile(path, target / path.name)
        return
    repository = Repository("model", source.repo, source.revision)
    files = repository.files(MODEL_FILES)
    if not any(file.path.endswith(".safetensors") for file in files):
        raise UserError(
            f"{source.repo} at {source.revision} has no safetensors: choose a revision that has, or convert it and "
            "use a local source."
        )
    # Into the scratch first: a download that was cut short is taken up again by the next run.
    fetched = job.scratch / "model"
    fetched.mkdir(exist_ok=True)
    repository.fetch(files, fetched)
    fetched.rename(target)


if __name__ == "__main__":
    main("model", build)
