"""Write the JSON schemas of Snakemake's `validate` anew: ``python -m ctm_core.config``."""

from ctm_core.config import Experiment, Workflow, json_schema
from ctm_core.runtime.files import write_text

if __name__ == "__main__":
    for name, section in (("config", Workflow), ("experiment", Experiment)):
        write_text(f"workflow/schemas/{name}.schema.json", json_schema(section))
