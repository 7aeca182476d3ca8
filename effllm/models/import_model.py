"""Stage `model`: a model that the study does not train, from the hub, from a local directory, or of random weights.

in:  nothing (hub, random), or the files of the directory
out: model/ (config, safetensors, tokenizer); for random weights no tokenizer, and model.json that says so
"""

import shutil

from pydantic import TypeAdapter

from effllm.errors import UserError
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
    _download(source, job)
    if not any(target.glob("*.safetensors")):
        raise UserError(
            f"{source.repo} at {source.revision} has no safetensors: choose a revision that has, or convert it and "
            "use a local source."
        )


def _download(source: HubModelSource, job: Job) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        # Into the scratch first: a download that was cut short is taken up again by the next run.
        snapshot = job.scratch / "snapshot"
        snapshot_download(source.repo, revision=source.revision, local_dir=snapshot, allow_patterns=list(MODEL_FILES))
    except GatedRepoError:
        raise UserError(
            f"{source.repo} is gated on the hub: accept its terms there and set HF_TOKEN for this host."
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        raise UserError(
            f"{source.repo} cannot be fetched ({type(error).__name__}): the study needs the hub here; connect this "
            "host, unset HF_HUB_OFFLINE, or use a local source."
        ) from None
    except HfHubHTTPError as error:
        raise UserError(f"{source.repo} at {source.revision}: {str(error).splitlines()[0]}") from None
    shutil.rmtree(snapshot / ".cache", ignore_errors=True)
    snapshot.rename(job.output / "model")


if __name__ == "__main__":
    main("model", build)
