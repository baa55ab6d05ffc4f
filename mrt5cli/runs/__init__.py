"""Find, list, compare, rank, tag, move and remove the runs below a folder.

Nothing here imports torch, and a list does not even import the recipe schema, so that listing a thousand runs
takes about a second.
"""
