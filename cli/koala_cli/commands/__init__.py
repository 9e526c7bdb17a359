"""The subcommands of ``koala``, one file each."""
