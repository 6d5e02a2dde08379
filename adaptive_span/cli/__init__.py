"""Which command does what? One file per command, which reads its arguments and calls the wing that does the work.

It may import everything. What computes with a configuration takes Hydra's key=value; what reads folders and files takes
plain arguments. Nothing else in the package reads the command line.
"""
