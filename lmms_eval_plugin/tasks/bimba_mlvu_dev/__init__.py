"""MLVU's development set, asked as for the published 71.37."""
