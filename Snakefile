"""EfficientLLM as a graph of stages: a table of contents.

snakemake --profile profiles/local results/table9.csv       the embedded study on this machine
snakemake --profile profiles/gh200 -n results/table9.csv    the paper's study: what would run
"""

from snakemake.utils import min_version

min_version("9.0")


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/pretrain.smk"
include: "rules/diffuse.smk"
include: "rules/sample.smk"
include: "rules/model.smk"
include: "rules/finetune.smk"
include: "rules/tune.smk"
include: "rules/quantize.smk"
include: "rules/evaluate.smk"
include: "rules/profile.smk"
include: "rules/serve.smk"
include: "rules/tables.smk"
include: "rules/report.smk"


# What needs the hub runs on the submitting host: compute nodes often have no way out.
localrules:
    all,
    corpus,
    tokenizer,
    instructions,
    images,
    captions,
    generator,
    autoencoder,
    features,
    model,
    benchmark,
    table,
    report,


onstart:
    require_records()
    tell_older_code()


rule all:
    default_target: True
    input:
        [f"{RESULTS}/{table}.csv" for table in GRAPH.tables()],
