# %% [markdown]
# A sweep from Python. Run this file as it is, or cell by cell in an editor that knows `# %%` (VS Code, PyCharm, Spyder, Jupytext).

# %%
from ee_ray.api import frontier, ledger, load_sweep, optimum, plan, report, run

sweep = load_sweep("sweeps/quickstart.yaml", storage="store")

# %% What it will cost. Nothing is trained.
quotation = plan(sweep)
print(
    f"{quotation['tokens']['to_train']:,} tokens to train; sharing stages saves {quotation['tokens']['saved_factor']} times"
)

# %% Run it, or go on with it. `local=True` trains in this process; without it, on a Ray cluster of this machine.
run(sweep, local=True)

# %% Every recipe that was trained: losses by lambda and fine-tuning rate, means over seeds.
table = ledger(sweep)
print(table.pivot_table(index="lambda", columns="finetune_lr", values="L_ret").round(3))

# %% The answer.
answer = optimum(sweep)
print(f"lambda* = {answer.lambda_star:.2f}, 95% interval {answer.ci95}, {answer.verdict}")

# %% The trade-off between what fine-tuning gains and what is kept, as a table and, with Plotly, as a figure.
points = frontier(sweep, x="L_ft", y="L_ret")
print(points.loc[points["on_hull"], ["lambda", "finetune_lr", "L_ft", "L_ret"]].round(3))

# %% The whole report.
print(report(sweep))
