"""Many runs at once: found below a folder, listed, compared, ranked, tagged, moved and removed.

Nothing here imports torch, and a listing not even the recipe's schema: a thousand runs take about a second.
"""
