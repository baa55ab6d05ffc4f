"""Many runs, for `mrt5 reproduce`.

| file | contents |
|---|---|
| `suites/` | the experiments, in YAML, and their reader |
| `jobs.py` | the types of experiments, jobs and plans |
| `graph.py` | turns experiments into jobs, each listed once, after its dependencies |
| `states.py` | a job's state on disk: done, half done, changed |
| `planning.py` | selects the jobs that are requested and fit a budget |
| `estimates.py` | the hours and disk space that jobs need |
| `executing.py` | runs the jobs in order until all are done, or Ctrl-C; several hosts may share them |
| `processes.py` `preload.py` | starts a job on its GPU, and ends it |
| `work.py` | does one job in its own process |
| `display.py` | the progress |
"""
