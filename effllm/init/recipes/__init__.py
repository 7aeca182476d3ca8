"""The questions that people ask first: one module each, whose answer is a table and a recommendation."""

from effllm.init.recipes.attention import AttentionRecipe
from effllm.init.recipes.compare import CompareRecipe, Int4Recipe
from effllm.init.recipes.pretrain import PretrainRecipe
from effllm.init.recipes.recipe import Recipe
from effllm.init.recipes.tune import TuneRecipe

COMPARE = CompareRecipe()
RECIPES: dict[str, Recipe] = {
    "int4": Int4Recipe(),
    "tune": TuneRecipe(),
    "attention": AttentionRecipe(),
    "pretrain": PretrainRecipe(),
}
"""By the names of `--recipe`; without one it is `COMPARE`."""
