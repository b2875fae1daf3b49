"""From a model and images to Predictions, in this process or inside a served model."""
