# Scores: what samples are compared with, and the samples of every cell of a model.


rule classifier:
    input:
        **layout.prepared("{dataset}", "train"),
    output:
        "results/features/classifier_{dataset}.safetensors",
    log:
        "logs/features/classifier_{dataset}.log",
    benchmark:
        "results/benchmarks/features/classifier_{dataset}.tsv"
    priority: REFERENCES_FIRST
    conda:
        "../envs/ctm.yaml"
    threads: dag.FEATURE_THREADS
    params:
        data=subpath(input.manifest, parent=True),
    shell:
        "CTM_LOG={log:q} exec ctm features classifier --data {params.data:q} --output {output:q}"


rule reference:
    input:
        unpack(reads(dag.reference)),
    output:
        layout.reference("{protocol}"),
    log:
        "logs/features/{protocol}.log",
    benchmark:
        "results/benchmarks/features/{protocol}.tsv"
    priority: REFERENCES_FIRST
    conda:
        "../envs/ctm.yaml"
    threads: dag.FEATURE_THREADS
    resources:
        protocol_file=protocol_path,
    params:
        needs=needs(dag.reference),
        digest=protocol_digest,
        data=options(manifest="--data", held_out_manifest="--held-out"),
    shell:
        "CTM_LOG={log:q} exec ctm features reference --protocol {resources.protocol_file:q} {params.data:q}"
        " --output {output:q}"


rule evaluate:
    input:
        unpack(reads(dag.evaluation)),
    output:
        **layout.evaluation("{experiment}", "{model}", "{seed}", "{step}"),
    log:
        "logs/evaluate/{experiment}/{model}/seed-{seed}/step-{step}.log",
    benchmark:
        "results/benchmarks/evaluate/{experiment}/{model}/seed-{seed}/step-{step}.tsv"
    priority: evaluation_length
    conda:
        "../envs/ctm.yaml"
    threads: evaluation_threads
    resources:
        gpu=evaluation_limit("gpu"),
        gpu_model=evaluation_limit("gpu_model"),
        slurm_partition=evaluation_limit("slurm_partition"),
        mem_mb=evaluation_limit("mem_mb"),
        runtime=evaluation_limit("runtime"),
        config_file=experiment_file,
    params:
        needs=needs(dag.evaluation),
        digest=evaluation_digest,
        further=options(teacher="--teacher", train_manifest="--data", test_manifest="--data"),
        runs="runs",
        folder=subpath(output.evaluation, parent=True),
    shell:
        "CTM_LOG={log:q} exec ctm evaluate --config {resources.config_file:q} --model {wildcards.model}"
        " --seed {wildcards.seed} --step {wildcards.step} --weights {input.weights:q}"
        " {params.further:q} --runs {params.runs:q} --output {params.folder:q} {input.references:q}"
