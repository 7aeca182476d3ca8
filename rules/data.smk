"""Corpora, tokenizers, token streams, orders of their windows, instruction data, images, with captions too.

in:  nothing, or the study's local files; a trained model for an order by its loss
out: results/{corpus,tokenizer,tokens,order,instructions,images,captions}/<id>/manifest.json
"""


rule corpus:
    input:
        unpack(parents("corpus")),
    output:
        manifest=f"{RESULTS}/corpus/{{id}}/manifest.json",
    log:
        "logs/corpus/{id}.log",
    wildcard_constraints:
        id=only("corpus"),
    conda:
        "../environment.yml"
    threads: text_cores("corpus")
    params:
        spec=spec("corpus"),
    message:
        "Sampling documents for the corpus {wildcards.id}"
    script:
        STAGE_SCRIPT


rule tokenizer:
    input:
        unpack(parents("tokenizer")),
    output:
        manifest=f"{RESULTS}/tokenizer/{{id}}/manifest.json",
    log:
        "logs/tokenizer/{id}.log",
    wildcard_constraints:
        id=only("tokenizer"),
    conda:
        "../environment.yml"
    threads: 1
    params:
        spec=spec("tokenizer"),
    message:
        "Making the tokenizer {wildcards.id}"
    script:
        STAGE_SCRIPT


rule tokens:
    input:
        unpack(parents("tokens")),
    output:
        manifest=f"{RESULTS}/tokens/{{id}}/manifest.json",
    log:
        "logs/tokens/{id}.log",
    wildcard_constraints:
        id=only("tokens"),
    conda:
        "../environment.yml"
    threads: text_cores("tokens")
    resources:
        **requests("tokens"),
    params:
        spec=spec("tokens"),
    message:
        "Encoding the token stream {wildcards.id}"
    script:
        STAGE_SCRIPT


rule order:
    input:
        unpack(parents("order")),
    output:
        manifest=f"{RESULTS}/order/{{id}}/manifest.json",
    log:
        "logs/order/{id}.log",
    wildcard_constraints:
        id=only("order"),
    conda:
        "../environment.yml"
    threads: text_cores("order")
    resources:
        **requests("order"),
    params:
        spec=spec("order"),
    message:
        "Measuring the windows of the order {wildcards.id}"
    script:
        STAGE_SCRIPT


rule instructions:
    input:
        unpack(parents("instructions")),
    output:
        manifest=f"{RESULTS}/instructions/{{id}}/manifest.json",
    log:
        "logs/instructions/{id}.log",
    wildcard_constraints:
        id=only("instructions"),
    conda:
        "../environment.yml"
    threads: 1
    params:
        spec=spec("instructions"),
    message:
        "Preparing the instruction data {wildcards.id}"
    script:
        STAGE_SCRIPT


rule images:
    input:
        unpack(parents("images")),
    output:
        manifest=f"{RESULTS}/images/{{id}}/manifest.json",
    log:
        "logs/images/{id}.log",
    wildcard_constraints:
        id=only("images"),
    conda:
        "../environment.yml"
    threads: 1
    params:
        spec=spec("images"),
    message:
        "Preparing the images {wildcards.id}"
    script:
        STAGE_SCRIPT


rule captions:
    input:
        unpack(parents("captions")),
    output:
        manifest=f"{RESULTS}/captions/{{id}}/manifest.json",
    log:
        "logs/captions/{id}.log",
    wildcard_constraints:
        id=only("captions"),
    conda:
        "../environment.yml"
    threads: 1
    params:
        spec=spec("captions"),
    message:
        "Preparing the captioned images {wildcards.id}"
    script:
        STAGE_SCRIPT


rule autoencoder:
    input:
        unpack(parents("autoencoder")),
    output:
        manifest=f"{RESULTS}/autoencoder/{{id}}/manifest.json",
    log:
        "logs/autoencoder/{id}.log",
    wildcard_constraints:
        id=only("autoencoder"),
    conda:
        "../environment.yml"
    threads: 1
    params:
        spec=spec("autoencoder"),
    message:
        "Fetching the autoencoder {wildcards.id}"
    script:
        STAGE_SCRIPT


rule latents:
    input:
        unpack(parents("latents")),
    output:
        manifest=f"{RESULTS}/latents/{{id}}/manifest.json",
    log:
        "logs/latents/{id}.log",
    wildcard_constraints:
        id=only("latents"),
    conda:
        "../environment.yml"
    threads: device_cores("latents")
    resources:
        **requests("latents"),
    params:
        spec=spec("latents"),
    message:
        "Encoding the latents {wildcards.id}"
    script:
        STAGE_SCRIPT
