# Data sets: one memory-mapped array, labels and a manifest for each split.


rule data:
    output:
        **prepared("{dataset}", "{split}"),
    log:
        "logs/data/{dataset}-{split}.log",
    benchmark:
        "results/benchmarks/data/{dataset}-{split}.tsv"
    conda:
        "../envs/ctm.yaml"
    params:
        needs=dataset_needs,
        source=source_option,
        folder=subpath(output.manifest, parent=True),
    shell:
        "ctm data --dataset {wildcards.dataset} --split {wildcards.split} {params.source:q}"
        " --output {params.folder:q} 2>&1 | tee -i {log:q}"
