"""A process and its machine: files, locks, run folders, devices, several processes, Slurm."""
