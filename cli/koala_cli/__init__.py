"""The command ``koala``: arguments, progress, tables and exit codes; the other packages do the work.

- ``main``: the entry point and its exit codes; ``commands``: one file per subcommand
- ``options``: arguments and options that several subcommands share
- ``errors``: how an error is shown, with command-line names in place of Python's
- ``screen``: stdout, stderr, progress and tables; ``extras``: checks that optional packages are installed
- ``files``: output that is made sure of before the work
- ``work``, ``picture``: tables that several subcommands show

A subcommand imports what it needs when it runs, so that ``koala run`` never loads torch.
"""
