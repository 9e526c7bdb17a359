"""The one command, ``koala``: arguments, progress, tables and exit codes; the work is the other packages'.

Each subcommand imports the stage it needs when it is called, so that ``koala run`` never loads torch.
"""
