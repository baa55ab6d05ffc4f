"""Many runs, for `mrt5 reproduce`.

| file | what is in it |
|---|---|
| `suites/` | which experiments there are, in YAML, and the reader of it |
| `jobs.py` | what an experiment, a job and a plan are |
| `graph.py` | from experiments to jobs, each once, after what it needs |
| `states.py` | what the disk shows of a job: done, half done, changed |
| `planning.py` | what of a plan is wanted, and fits into a budget |
| `estimates.py` | the hours and the disk that jobs take |
| `executing.py` | the jobs in their order, until all are done or Ctrl-C; hosts may share them |
| `processes.py` `preload.py` | how a job is started, on which GPU, and ended |
| `work.py` | one job, in its own process |
| `display.py` | how far it is |
"""
