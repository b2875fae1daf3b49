"""The only door to MLflow: runs, logged models, the server and what could not be sent to it yet."""
