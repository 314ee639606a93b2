"""The figures of a study: pure functions from its trials to plotly figures with their words.

Optuna's own plots leave pruned trials out or draw them like completed ones; here each figure shows
them, marked, at the last value that they reported. Every name and text that comes from a study is
escaped, since plotly reads a subset of HTML in them.
"""
