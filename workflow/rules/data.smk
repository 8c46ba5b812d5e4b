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
    params:
        needs=needs(dag.data),
        source=source_option,
        folder=subpath(output.manifest, parent=True),
    shell:
        "exec ctm --log {log:q} data --dataset {wildcards.dataset} --split {wildcards.split}"
        " {params.source:q} --output {params.folder:q}"
