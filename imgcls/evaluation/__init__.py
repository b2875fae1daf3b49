"""From Predictions to metrics, tables and figures: pure functions that know no model and no MLflow."""
