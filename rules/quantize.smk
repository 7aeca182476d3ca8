"""Models in the precisions under test.

in:  a trained or fetched model, and a corpus to calibrate on
out: results/quantize/<id>/manifest.json
"""


rule quantize:
    input:
        unpack(parents("quantize")),
    output:
        manifest=f"{RESULTS}/quantize/{{id}}/manifest.json",
    log:
        "logs/quantize/{id}.log",
    wildcard_constraints:
        id=only("quantize"),
    conda:
        "../environment.yml"
    threads: device_cores("quantize")
    resources:
        **requests("quantize"),
    params:
        spec=spec("quantize"),
    message:
        "Converting {wildcards.id}"
    script:
        STAGE_SCRIPT
