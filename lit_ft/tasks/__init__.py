"""Tasks: loss, metrics, targets and classes of multiclass, multilabel and regression."""
