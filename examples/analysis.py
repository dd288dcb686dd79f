# %% [markdown]
# Many runs in one data frame, cell by cell: `python examples/analysis.py runs/*.h5`, or as a notebook in any editor
# that knows `# %%`. Needs `pip install 'fedmpi[plot]'`.

# %%
import sys

import pandas

from fedmpi import results

runs = [results.open(path) for path in sys.argv[1:]]

# %% One row a run: what it was, and how it ended.
overview = pandas.DataFrame(
    {
        "method": run.attributes["algorithm"],
        "seed": run.attributes["seed"],
        "learning rate": run.settings["local"]["lr"],
        "status": run.status,
        "last": run.statistics().last,
        run.best_is(run.main_column): run.statistics().best,
        "seconds": run.rounds["seconds"].sum(),
    }
    for run in runs
)
print(overview.to_string(index=False))

# %% Over seeds.
print(overview.groupby("method")["last"].agg(["mean", "std", "count"]))

# %% All rounds of all runs, below one another.
rounds = pandas.concat(
    [run.to_pandas().assign(method=run.attributes["algorithm"], seed=run.attributes["seed"]) for run in runs]
)
print(rounds.pivot_table(index="round", columns="method", values="test_accuracy").dropna(how="all"))

# %% Who was slow? A participation a row.
clients = runs[0].to_pandas("clients")
print(clients.groupby("client")["loss"].agg(["count", "mean"]).head())

# %% A picture of one's own.
figure = rounds.pivot_table(index="round", columns="method", values="train_loss").plot(logy=True).figure
figure.savefig("example.png")
