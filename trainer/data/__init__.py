"""The data that recipes stand on, made from what people have: one module for each kind.

Nothing here knows a model, a token, a reward or a log.
"""
