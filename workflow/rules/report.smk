# What is read: the tables with the paper's claims, the figures and the report.


rule table:
    input:
        claims=CLAIMS,
        published=PUBLISHED,
        evaluations=evaluated("evaluation.json"),
    output:
        runs="results/runs.csv",
        table=report("results/table.csv", caption="../report/table.rst", category="Table"),
        markdown="results/table.md",
        latex="results/table.tex",
        metrics="results/metrics.json",
        claims="results/claims.json",
        told="results/claims.md",
        paper=expand(
            "results/paper/table{number}.{ending}",
            number=(1, 2, 3),
            ending=("csv", "md", "tex"),
        ),
    log:
        "logs/report/table.log",
    benchmark:
        "results/benchmarks/report/table.tsv"
    conda:
        "../envs/ctm.yaml"
    params:
        folder=subpath(output.table, parent=True),
    shell:
        "ctm table --claims {input.claims:q} --published {input.published:q}"
        " --output {params.folder:q} {input.evaluations:q} 2>&1 | tee -i {log:q}"


rule figures:
    input:
        evaluations=evaluated("evaluation.json"),
        previews=evaluated("previews.safetensors"),
        curves=trained("training.jsonl"),
        records=trained("training.json"),
    output:
        report(
            directory("results/figures"),
            patterns=["{figure}.png"],
            caption="../report/figure.rst",
            category="Figures",
        ),
    log:
        "logs/report/figures.log",
    benchmark:
        "results/benchmarks/report/figures.tsv"
    conda:
        "../envs/ctm.yaml"
    params:
        curves=training_options,
    shell:
        "ctm figures --output {output:q} {params.curves:q} {input.evaluations:q}"
        " 2>&1 | tee -i {log:q}"


rule report:
    input:
        rules.table.output,
        # A folder has a date but no content to compare, and gets a new date wherever files are
        # restored; whatever changes the figures is among the other inputs.
        ancient(rules.figures.output),
        published=PUBLISHED,
        evaluations=evaluated("evaluation.json"),
        previews=evaluated("previews.safetensors"),
        curves=trained("training.jsonl"),
        records=trained("training.json"),
    output:
        report("results/report.html", caption="../report/report.rst", category="Report"),
    log:
        "logs/report/report.log",
    benchmark:
        "results/benchmarks/report/report.tsv"
    conda:
        "../envs/ctm.yaml"
    params:
        results=subpath(input[0], parent=True),
    shell:
        "ctm report --published {input.published:q} --results {params.results:q}"
        " --output {output:q} 2>&1 | tee -i {log:q}"
