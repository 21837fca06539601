"""Sweeps: each cell of ``python train.py -m`` is a fresh process with a folder of its own. Without torch.

Hydra runs the jobs of a sweep as functions, in one process after the other or in workers. A trainer of several
processes starts these from the command line that it was started with: they would run the whole sweep again. So a job
only starts ``train.py`` anew, with the cell's own command line, whichever launcher runs the job.
"""
