"""`make bench`: what it costs, against a peer and a floor measured in the same run.

    __main__ ──▶ one file for each topic ──apart──▶ processes of its own ──numbers──▶ row ──▶ table

Ratios hold from machine to machine; absolute times do not. An aim that is missed is shown, and fails nothing.
"""
