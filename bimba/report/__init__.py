"""Numbers for people: accuracies with intervals, tables, the demo's before and after, what this machine can run."""
