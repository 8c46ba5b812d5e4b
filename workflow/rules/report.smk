# What is read: the tables with the paper's claims, the figures and the report.


rule table:
    input:
        **TABLE.reads,
    output:
        **{
            **TABLE.makes,
            "table": report(
                TABLE.makes["table"], caption="../report/table.rst", category="Table"
            ),
        },
    log:
        "logs/report/table.log",
    benchmark:
        "results/benchmarks/report/table.tsv"
    conda:
        "../envs/ctm.yaml"
    resources:
        claims=CLAIMS,
        published=PUBLISHED,
    params:
        digests=[sha256_file(CLAIMS), sha256_file(PUBLISHED)],
        folder=subpath(output.table, parent=True),
    shell:
        "CTM_LOG={log:q} exec ctm table --claims {resources.claims:q} --published {resources.published:q}"
        " --output {params.folder:q} {input.evaluations:q}"


rule figures:
    input:
        **FIGURES.reads,
    output:
        report(
            directory(FIGURES.makes["figures"]),
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
        further=options(curves="--training", train_manifest="--data"),
    shell:
        "CTM_LOG={log:q} exec ctm figures --output {output:q} {params.further:q}"
        " {input.evaluations:q}"


rule report:
    input:
        **{
            **REPORT.reads,
            # A folder has a date but no content to compare, and gets a new date wherever files
            # are restored; whatever changes the figures is among the other inputs.
            "figures": ancient(REPORT.reads["figures"]),
        },
    output:
        report(REPORT.makes["report"], caption="../report/report.rst", category="Report"),
    log:
        "logs/report/report.log",
    benchmark:
        "results/benchmarks/report/report.tsv"
    conda:
        "../envs/ctm.yaml"
    resources:
        published=PUBLISHED,
    params:
        digests=[sha256_file(path) for path in (PUBLISHED, *REFERENCES)],
        results=subpath(output[0], parent=True),
    shell:
        "CTM_LOG={log:q} exec ctm report --published {resources.published:q}"
        " --results {params.results:q} --output {output:q}"
