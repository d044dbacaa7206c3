"""Count the paper's four cohorts in the index of HEST-1k, with the paper's n beside them.

It writes results/hest_cohorts.csv.

    PEKA_MIRROR=../shared/data python scripts/hest_cohorts.py
"""

from pathlib import Path

from peka_core.sources import hest
from peka_core.studies.tables import made_here, save_table


def main() -> None:
    """Count the cohorts, print the table and write it."""
    table = hest.counts_table()
    groups = {name: hest.groups(hest.slides(name)) for name in table.index}
    table["groups"] = [found["patient"].nunique() for found in groups.values()]
    table["slides of unknown patients"] = [
        int((found["basis"] == "unknown").sum()) for found in groups.values()
    ]
    table["copies"] = [int((found["duplicate_of"] != "").sum()) for found in groups.values()]
    print(table.to_string())
    table = table.assign(**made_here("cpu") | {"code": ""})  # no score
    print(save_table(table.reset_index(), Path(__file__).parents[1] / "results", "hest_cohorts"))


if __name__ == "__main__":
    main()
