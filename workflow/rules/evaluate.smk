# Scores: what samples are compared with, and the samples of every cell of a model.


rule classifier:
    input:
        **prepared("{dataset}", "train"),
    output:
        "results/features/classifier_{dataset}.safetensors",
    log:
        "logs/features/classifier_{dataset}.log",
    benchmark:
        "results/benchmarks/features/classifier_{dataset}.tsv"
    conda:
        "../envs/ctm.yaml"
    threads: 2
    params:
        data=subpath(input.manifest, parent=True),
    shell:
        "ctm features classifier --data {params.data:q} --output {output:q} 2>&1 | tee -i {log:q}"


rule reference:
    input:
        unpack(reference_data),
    output:
        "results/features/{protocol}.safetensors",
    log:
        "logs/features/{protocol}.log",
    benchmark:
        "results/benchmarks/features/{protocol}.tsv"
    conda:
        "../envs/ctm.yaml"
    threads: 2
    params:
        needs=reference_needs,
        digest=protocol_digest,
        protocol=protocol_path,
        data=reference_options,
    shell:
        "ctm features reference --protocol {params.protocol:q} {params.data:q}"
        " --output {output:q} 2>&1 | tee -i {log:q}"


rule evaluate:
    input:
        unpack(evaluation_data),
        weights=evaluated_weights,
        references=references,
    output:
        evaluation="results/{experiment}/{model}/seed-{seed}/step-{step}/evaluation.json",
        previews="results/{experiment}/{model}/seed-{seed}/step-{step}/previews.safetensors",
    log:
        "logs/evaluate/{experiment}/{model}/seed-{seed}/step-{step}.log",
    benchmark:
        "results/benchmarks/evaluate/{experiment}/{model}/seed-{seed}/step-{step}.tsv"
    conda:
        "../envs/ctm.yaml"
    threads: evaluation_threads
    resources:
        gpu=evaluation_limit("gpu"),
        gpu_model=evaluation_limit("gpu_model"),
        slurm_partition=evaluation_limit("slurm_partition"),
        mem_mb=evaluation_limit("mem_mb"),
        runtime=evaluation_limit("runtime"),
    params:
        needs=evaluation_needs,
        digest=evaluation_digest,
        config=experiment_file,
        further=evaluation_options,
        runs="runs",
        folder=subpath(output.evaluation, parent=True),
    shell:
        "ctm evaluate --config {params.config:q} --model {wildcards.model} --seed {wildcards.seed}"
        " --step {wildcards.step} --weights {input.weights:q} {params.further:q}"
        " --runs {params.runs:q} --output {params.folder:q} {input.references:q} 2>&1 | tee -i {log:q}"
