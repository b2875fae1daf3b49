"""The data sources, one file each; imgcls/data/__init__.py names them."""
