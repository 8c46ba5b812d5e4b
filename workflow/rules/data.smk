# Data sets: one memory-mapped array, labels and a manifest for each split.


rule data:
    output:
        **layout.prepared("{dataset}", "{split}"),
    log:
        "logs/data/{dataset}-{split}.log",
    benchmark:
        "results/benchmarks/data/{dataset}-{split}.tsv"
    conda:
        "../envs/ctm.yaml"
    resources:
        source=source_option,
    params:
        needs=data_needs,
        folder=subpath(output.manifest, parent=True),
    shell:
        "CTM_LOG={log:q} exec ctm data --dataset {wildcards.dataset} --split {wildcards.split}"
        " {resources.source} --output {params.folder:q}"
