"""The compute core: next-token moments, encoders, subspaces and scores in closed form; torch and nothing else."""
