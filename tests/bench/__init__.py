"""`make bench`: what it costs, against a peer and a floor measured in the same run.

Ratios hold from machine to machine; absolute times do not. Nothing here passes or fails.
"""
