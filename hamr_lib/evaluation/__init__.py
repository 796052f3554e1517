"""Evaluation: predictions, the protocols of the test sets and their scores.

protocols  `Protocol`, `protocol_matrix`, `joint_errors_3d`: every way in which joints are scored
metrics    PCK, AUC, mean joint errors, silhouette IoU and bootstrap intervals
predict    `predict`, `load_predictions`: a method run over a test set, saved as one file
scores     `evaluate_network`, `evaluate_method`, `merge_metrics`: from crops to metrics.csv
evidence   `evaluate_evidence`: `recover` on labelled hands, by its evidence
"""
