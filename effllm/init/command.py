"""`effllm init`: a study in one command."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import yaml

from effllm.command_line import number, one_of, whole_number
from effllm.errors import UserError
from effllm.fields import LONGEST_TEXT
from effllm.init.budget import fit
from effllm.init.chosen import ChosenModel, choose
from effllm.init.recipes import COMPARE, RECIPES, Recipe
from effllm.init.recipes.recipe import Draft
from effllm.init.size import Size
from effllm.init.text import comment, flow
from effllm.init.wishes import Wishes, wishes_of
from effllm.planning.show_plan import text_of
from effllm.runtime.artifact import write_text
from effllm.stages.graph import Graph
from effllm.study import Study, parse_study
from effllm.study.inheritance import SHIPPED


def register(command: argparse.ArgumentParser) -> None:
    """Add the options of the command, and what runs."""
    command.add_argument("-o", "--output", type=Path, required=True, help="the study to write, such as mine.yaml")
    command.add_argument("--force", action="store_true", help="write over a file that exists")
    command.add_argument(
        "--recipe",
        type=one_of("--recipe", RECIPES),
        metavar=f"{{{','.join(RECIPES)}}}",
        help="the question to answer; without it, a comparison of models",
    )
    command.add_argument(
        "--model", action="append", default=[], metavar="MODEL", help="owner/name[@COMMIT] or a directory; repeatable"
    )
    command.add_argument("--precisions", metavar="A,B", help="such as bfloat16,int4 (the default)")
    command.add_argument("--benchmarks", metavar="A,B", help="such as ifeval,mmlu-pro (the default), or none")
    command.add_argument("--data", type=Path, metavar="FILE", help="conversations to fine-tune on, such as mine.jsonl")
    command.add_argument("--device", metavar="NAME", help="the GPU's name as NVML reports it, or cpu: sizes of minutes")
    command.add_argument(
        "--hours",
        type=number("--hours", "24"),
        metavar="H",
        help="cut the study until its plan fits into so many hours",
    )
    command.add_argument(
        "--gpus",
        type=whole_number("--gpus", "1"),
        metavar="N",
        help="GPUs that work at once in those hours (default: 1)",
    )
    command.add_argument(
        "--assume-mfu",
        type=number("--assume-mfu", "0.4"),
        metavar="M",
        help="as in effllm plan: share of the peak in training",
    )
    command.add_argument(
        "--results", type=Path, default=Path("results"), help="earlier builds to plan by (default: %(default)s)"
    )
    command.set_defaults(run=lambda arguments: run(wishes_of(arguments)))


def run(wishes: Wishes) -> int:
    """Write the study, and say what to do with it. Nothing is written that `effllm check` would refuse."""
    recipe = RECIPES[wishes.recipe] if wishes.recipe else COMPARE
    _check_options(wishes, recipe)
    models = choose(wishes.models)
    drafts = recipe.drafts(wishes, models)
    fitted = None
    if wishes.hours is None:
        draft = drafts.at(Size())
    else:
        fitted = fit(wishes, drafts, lambda draft: _study_of(_text(wishes, recipe, draft), wishes))
        draft = fitted.draft
    text = _text(
        wishes, recipe, draft, [fitted.sentence(wishes), *(f"So: {line}." for line in fitted.cut)] if fitted else ()
    )
    study = _checked(text, wishes, models)
    write_text(wishes.output, text)
    if fitted:
        cuts = [f"  {line}" for line in fitted.cut]
        print("\n".join([text_of(fitted.plan), "", fitted.sentence(wishes), *cuts, *fitted.unknown(wishes), ""]))
    print(f"{wishes.output}: the study {study.name!r} in {len(text.splitlines())} lines. {recipe.question}")
    profile = "profiles/local" if wishes.on_cpu else "profiles/gpu"
    targets = " ".join(f"results/{table}.csv" for table in draft.tables)
    print(f"  effllm plan --study {wishes.output} {' '.join(draft.tables)}")
    print(f"  snakemake --profile {profile} --config study={os.path.normpath(wishes.output.absolute())} -- {targets}")
    print(f"  effllm recommend results/{draft.tables[0]}.csv{_limits(study, draft.tables[0])}")
    return 0


def _limits(study: Study, table: str) -> str:
    """What the recipes' budgets hold, as options of `effllm recommend`."""
    budget = study.budgets.get(table)
    if budget is None:
        return ""
    words = [f" --quality-loss {budget.quality_loss:g}"] if budget.quality_loss is not None else []
    words += [f" --prefer {','.join(budget.prefer)}"] if budget.prefer else []
    return "".join(words)


def _check_options(wishes: Wishes, recipe: Recipe) -> None:
    given = {
        "--model": bool(wishes.models),
        "--precisions": bool(wishes.precisions),
        "--benchmarks": bool(wishes.benchmarks) or not wishes.scored,
        "--data": wishes.data is not None,
    }
    name = f"--recipe {wishes.recipe}" if wishes.recipe else "a comparison"
    for option, is_given in given.items():
        if is_given and option not in recipe.takes:
            raise UserError(f"{option} means nothing to {name}: leave it out ({recipe.question}).")
        if not is_given and option in recipe.needs:
            raise UserError(f"{option} is missing, and {name} needs it ({recipe.question}).")


def _text(wishes: Wishes, recipe: Recipe, draft: Draft, notes: Sequence[str] = ()) -> str:
    schema = os.path.relpath(SHIPPED / "schema.json", wishes.output.absolute().parent)
    lines = [
        *comment(recipe.question),
        *comment(wishes.command()),
        *(line for note in notes for line in comment(note)),
        f"# yaml-language-server: $schema={schema}",
        f"extends: {flow(list(draft.extends))}",
        f"name: {flow(wishes.output.stem[:LONGEST_TEXT])}",
        "",
        *draft.sections,
    ]
    return "\n".join(lines) + "\n"


def _study_of(text: str, wishes: Wishes) -> Study:
    return parse_study(yaml.safe_load(text), str(wishes.output))


def _checked(text: str, wishes: Wishes, models: list[ChosenModel]) -> Study:
    """The study that the text is; `UserError` for what could not be run."""
    study = _study_of(text, wishes)
    for model in models:
        positions = model.number("max_position_embeddings")
        for table in study.tables.defined().values():
            for id, key, tokens in table.lengths(study):
                if id == model.id and positions is not None and tokens > positions:
                    raise UserError(
                        f"--model {model.id} reads {positions:,} tokens at most, and {key} takes {tokens:,}: name a "
                        "model of more, or write a study with a shorter one."
                    )
    Graph(study).check_files()
    return study
