"""Evaluation: predictions, the protocols of the test sets and their scores.

metrics  PCK, AUC, mean joint errors, silhouette IoU and bootstrap intervals
scores   `evaluate_network`, `evaluate_method`, `merge_metrics`: from crops to metrics.csv
"""
