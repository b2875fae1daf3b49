"""From a model and batches to a stream of rows and checkpoints; knows neither MLflow nor Optuna."""
