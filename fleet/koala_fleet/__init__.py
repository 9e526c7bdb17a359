"""Many pictures and many machines: files of prompts, and Ray where one machine is outgrown.

- ``prompts``: a file of them, row by row; ``results``: what became of each row, exactly once
- ``batch``: draws a file on this machine; ``ray_batch``: on a cluster, with Ray Data
- ``ray_serve``: replicas of Ray Serve that draw for the HTTP server
- ``nodes``: a bundle on the nodes of a cluster, and which of them can draw it
"""
