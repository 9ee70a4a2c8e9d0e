"""The checks of `skysift doctor`: of this machine, a cluster, places and a service.

A probe answers with findings and changes nothing; each finding that is not right names the command
that repairs it. The command is :mod:`workflows.commands.doctor`.
"""
