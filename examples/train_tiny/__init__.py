"""How the pipeline that ships was trained: ``python -m examples.train_tiny``, see README.md."""
