# From data to table: every rule is one verb of `ctm`, and state that must survive lives in runs/.
#
#   snakemake --cores all results/table.csv                        the default, config/config.yaml
#   snakemake --cores all --configfile config/smoke.yaml           the same DAG in a minute
#   snakemake --cores all --configfile mine.yaml --directory mine  results, runs and logs in mine/
from snakemake.utils import min_version

min_version("9.27")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"


# The rule that a bare `snakemake` makes.
rule all:
    input:
        "results/table.csv",
        "results/report.html",
        "results/figures",


include: "workflow/rules/data.smk"
include: "workflow/rules/teacher.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
