"""NExT-QA's multiple-choice test set, asked as for the published 83.73."""
