"""The only door to Optuna: search spaces, sweeps of studies, workers around an objective; knows no MLflow, no torch."""
