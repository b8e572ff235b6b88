"""Tasks of the lm-evaluation-harness over files of the user: `local_tasks` gives them to the harness."""
