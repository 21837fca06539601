"""PerceptionTest's validation set, asked as for the published 68.51."""
