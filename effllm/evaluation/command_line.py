"""The harness's own command line for an evaluation: the same score, to the last digit, without this package's stage.

    python -m effllm.evaluation.command_line results/evaluate/<id> --tasks DIR

writes the task files of the evaluation's benchmark to DIR and prints the command, to be run from the same directory.
"""

import argparse
import shlex
import sys
from pathlib import Path

from effllm.data.instructions.templates import text_template
from effllm.errors import EXIT_USER_ERROR, UserError
from effllm.evaluation.run_time_needs import NLTK_DATA
from effllm.evaluation.tasks import write_task_files
from effllm.models.checkpoint.ids import GENERATION_CONFIG
from effllm.models.greedy import greedy_config
from effllm.models.loading import load_tokenizer
from effllm.results.benchmark import Benchmark
from effllm.results.evaluation import ChatRecord, Evaluation
from effllm.runtime.artifact import MANIFEST, Artifact

# Beside a tokenizer it comes before the one in its configuration.
CHAT_TEMPLATE = "chat_template.jinja"


def command_line(evaluation: Path, folder: Path) -> str:
    """Write the task files into `folder` and return the command that scores as the artifact `evaluation` was scored.

    Model and benchmark are looked for in the same results directory. `UserError` if one of the three is missing, or the
    evaluation has no score.
    """
    scored = Artifact.open(evaluation / MANIFEST)
    if scored.manifest.status != "ok":
        raise UserError(f"{evaluation} has no score ({scored.manifest.reason}): name an evaluation whose status is ok.")
    model, benchmark = (
        Artifact.open(evaluation.parent.parent / parent.stage / parent.id / MANIFEST)
        for parent in (scored.manifest.parents["model"], scored.manifest.parents["benchmark"])
    )
    described, scores = Benchmark.read(benchmark.directory), Evaluation.read(scored.directory)
    folder.mkdir(parents=True, exist_ok=True)
    write_task_files(described, benchmark.directory, folder)
    # HFLM's default computes log-probabilities in the model's precision.
    options = {"pretrained": model.directory / "model", "softmax_dtype": "float32", "max_length": scores.max_length}
    kinds = {task.output_type for task in described.tasks}
    if "generate_until" in kinds or scores.chat:
        options["pretrained"] = _copy(model.directory / "model", folder / "model", scores.chat)
    if "loglikelihood_rolling" in kinds:
        # It puts a begin-of-text token before the text itself.
        options["add_bos_token"] = False
    environment: dict[str, object] = {
        "HF_HUB_OFFLINE": 1,
        "DISABLE_MULTIPROC": 1,
        "OMP_NUM_THREADS": scores.cost.threads,
    }
    nltk_data = benchmark.directory / NLTK_DATA
    if nltk_data.is_dir():
        environment["NLTK_DATA"] = nltk_data
    arguments = {
        "model": "hf",
        "model_args": ",".join(f"{key}={value}" for key, value in options.items()),
        "include_path": folder,
        "tasks": described.task,
        "batch_size": scores.cost.batch_size,
        "device": scores.cost.device,
        "seed": scores.seed,
    }
    if described.limit:
        arguments["limit"] = described.limit
    words = [*(f"{name}={value}" for name, value in environment.items()), "lm-eval", "run"]
    for name, value in arguments.items():
        words += [f"--{name}", str(value)]
    if scores.chat:
        words += ["--apply_chat_template", "--fewshot_as_multiturn", str(scores.chat.fewshot_as_multiturn)]
        if scores.chat.system_instruction:
            # In one word: it may begin with a dash.
            words.append(f"--system_instruction={scores.chat.system_instruction}")
    return shlex.join(words)


def _copy(source: Path, target: Path, chat: ChatRecord | None) -> Path:
    """The model of `source` by links in `target`, with the generation and the chat template that it was scored by."""
    target.mkdir(exist_ok=True)
    for file in source.iterdir():
        link = target / file.name
        link.unlink(missing_ok=True)
        if file.name != GENERATION_CONFIG:
            link.symlink_to(file.resolve())
    tokenizer = load_tokenizer(source)
    ends: int | list[int] | None = tokenizer.eos_token_id
    if chat:
        ends = chat.end_token_ids
        (target / CHAT_TEMPLATE).unlink(missing_ok=True)
        (target / CHAT_TEMPLATE).write_text(text_template(tokenizer), encoding="utf-8")
    greedy_config(ends, tokenizer.pad_token_id).save_pretrained(target)
    return target


def main(argv: list[str] | None = None) -> None:
    """Print the command; exit 2 with one sentence for what cannot be scored again."""
    parser = argparse.ArgumentParser(prog="python -m effllm.evaluation.command_line", description=__doc__)
    parser.add_argument("evaluation", type=Path, help="directory of an evaluate artifact: results/evaluate/<id>")
    parser.add_argument("--tasks", type=Path, required=True, help="directory for the task files")
    arguments = parser.parse_args(argv)
    try:
        print(command_line(arguments.evaluation, arguments.tasks))
        protocol = Artifact.open(arguments.evaluation / MANIFEST).manifest.spec["config"]["protocol"]
        if protocol.get("shares_prefixes"):
            print(
                "note: what prompts begin with alike was read once (evaluation.shares_prefixes), so log-likelihoods "
                "differ from this command's by rounding.",
                file=sys.stderr,
            )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


if __name__ == "__main__":
    main()
